"""A grid's results as Markdown: scores of every organ, DyCE's gain by frequency, Table 5, and how runs were made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from examples.synapse_ssl.published import published_section
from examples.synapse_ssl.rows import (
    Run,
    budgets_of,
    cell,
    gains,
    label_of,
    pairs_of,
    rows_of,
    runs_at,
    setting_of,
    shares,
    table,
)

_METRICS = {
    "dsc": "Dice, percent",
    "recall": "recall, percent",
    "asd": "average surface distance, voxels",
}


def report(results: dict[str, Any]) -> str:
    """The tables of a grid (see `grid.collect`), one for each label budget and score."""
    runs = results["runs"]
    if not runs:
        return f"# {results['title']}\n\nNo run is finished.\n"
    lines = [
        f"# {results['title']}",
        "",
        "Mean over the test volumes; mean ± standard deviation over the seeds, whose number stands in brackets. One "
        "seed says little about differences of a point or two. The weights are those of the best Dice on validation. "
        "“All labels” are the supervised rows with every training patient labelled, a bound for the others.",
        "",
        *dict.fromkeys(run["note"] for run in runs),
    ]
    for budget in budgets_of(results):
        chosen, head = runs_at(results, budget), f"{budget:.0%} of the patients labelled"
        for metric, name in _METRICS.items():
            lines += ["", f"## {head}: {name}", "", *_scores(results["classes"], chosen, metric)]
        lines += _gains(results["classes"], chosen, head)
    return "\n".join([*lines, "", *published_section(results), "", *_provenance(runs), ""])


def _scores(classes: Sequence[str], runs: Sequence[Run], metric: str) -> list[str]:
    rows = []
    for (setting, pixel), entries in rows_of(runs).items():
        scores = [run["scores"] for run in entries if metric in run["scores"]]
        columns = [[score[metric] for score in scores]]
        columns += [[score[f"{metric}_per_class"][k] for score in scores] for k in range(len(classes) - 1)]
        mean, *organs = (cell([value for value in column if value is not None]) for column in columns)
        rows.append([label_of(setting, pixel), f"{mean} ({len(scores)})" if scores else mean, *organs])
    lines = table(["", "mean", *_words(classes)], rows)
    if any(metric not in run["scores"] for run in runs):
        lines += ["", f"Not all runs recorded {metric}: the brackets count those that did, “–” is none."]
    return lines


def _gains(classes: Sequence[str], runs: Sequence[Run], head: str) -> list[str]:
    """DyCE's gain on each class, the rarest first: the numbers of `plots.gain_against_frequency`."""
    rows = []
    for setting, pairs in pairs_of(runs).items():
        columns = zip(
            shares(pairs), _words(classes), gains(pairs, "dsc"), gains(pairs, "recall"), strict=True
        )
        for share, name, dice, recall in sorted(columns):
            label = f"{setting.label} ({len(pairs)})"
            rows.append([label, name, f"{share:.2%}", cell(dice, "+.1f"), cell(recall, "+.1f")])
    if not rows:
        return []
    return [
        "",
        f"## {head}: what DyCE adds to each class, the rarest first",
        "",
        "In points, over the seeds that have both losses; shares are of the labelled foreground voxels. Recall is “–” "
        "where not all of those runs recorded it.",
        "",
        *table(["", "class", "share", "Dice", "recall"], rows),
    ]


def _provenance(runs: Sequence[Run]) -> list[str]:
    """Which code made which rows: results of several commits may stand in one table."""
    made: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for run in runs:
        key = run["commit"], run["device"], run["versions"]["torch"]
        row = f"{label_of(setting_of(run), run['pixel'])}, {run['budget']:.0%}"
        made.setdefault(key, {}).setdefault(row, []).append(str(run["seed"]))
    rows = [
        [*key, "; ".join(f"{row}: {', '.join(seeds)}" for row, seeds in entries.items())]
        for key, entries in made.items()
    ]
    return [
        "## How these runs were made",
        "",
        *table(["commit", "device", "torch", "rows, and their seeds"], rows),
    ]


def _words(classes: Sequence[str]) -> list[str]:
    return [name.replace("_", " ") for name in classes[1:]]
