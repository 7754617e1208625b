"""A grid's results as Markdown: Dice and surface distance of every organ, beside what Table 5 is known to print."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PUBLISHED = Path(__file__).parent / "published.toml"
_METRICS = {"dsc": "Dice, percent", "asd": "average surface distance, voxels"}
_NAMES = {
    "supervised": "supervised",
    "ua_mt": "UA-MT",
    "urpc": "URPC",
    "cps": "CPS",
    "depl": "DePL",
    "dhc": "DHC",
    "a_and_d": "A&D",
}


def report(results: dict[str, Any]) -> str:
    """The tables of a grid (see `grid.collect`), one for each label budget and metric."""
    runs = results["runs"]
    if not runs:
        return f"# {results['title']}\n\nNo run is finished.\n"
    lines = [
        f"# {results['title']}",
        "",
        "Mean over the test volumes; mean ± standard deviation over the seeds, whose number stands in brackets. One "
        "seed says little about differences of a point or two. The weights are those of the best Dice on validation.",
        "",
        *dict.fromkeys(run["note"] for run in runs),
    ]
    for budget in sorted({run["budget"] for run in runs}):
        chosen = [run for run in runs if run["budget"] == budget]
        for metric, name in _METRICS.items():
            lines += [
                "",
                f"## {budget:.0%} of the patients labelled: {name}",
                "",
                *_table(results, chosen, metric),
            ]
    return "\n".join([*lines, "", *_published(runs), ""])


def label_of(method: str, pixel: str) -> str:
    """A row's name: the method, and DyCE where it is used."""
    return _NAMES.get(method, method) + (" + DyCE" if pixel == "DyCE" else "")


def rows_of(runs: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """The (method, pixel loss) pairs of runs, in their order."""
    return list(dict.fromkeys((run["method"], run["pixel"]) for run in runs))


def pairs_of(runs: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(CE, DyCE) of one method's runs, of the seeds that have both."""
    found = {(run["pixel"], run["seed"]): run for run in runs}
    seeds = sorted({seed for _, seed in found})
    return [
        (found["CE", seed], found["DyCE", seed])
        for seed in seeds
        if ("CE", seed) in found and ("DyCE", seed) in found
    ]


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation, over n - 1 (GenericSSL's is over n); the latter 0 for one value."""
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def _table(results: dict[str, Any], runs: Sequence[dict[str, Any]], metric: str) -> list[str]:
    head = ["", "mean", *(name.replace("_", " ") for name in results["classes"][1:])]
    lines = [_row(head), _row(["---", *["---:"] * (len(head) - 1)])]
    for method, pixel in rows_of(runs):
        scores = [run["scores"] for run in runs if (run["method"], run["pixel"]) == (method, pixel)]
        columns = [[score[metric] for score in scores]]
        columns += [list(values) for values in zip(*(s[f"{metric}_per_class"] for s in scores), strict=True)]
        cells = [_cell(values) for values in columns]
        cells[0] += f" ({len(scores)})"
        lines.append(_row([label_of(method, pixel), *cells]))
    return lines


def _cell(values: Sequence[float], form: str = ".1f") -> str:
    center, deviation = spread(values)
    return f"{center:{form}} ± {deviation:.1f}" if len(values) > 1 else f"{center:{form}}"


def _published(runs: Sequence[dict[str, Any]]) -> list[str]:
    """What is known of Table 5, beside the gains of these runs."""
    content = tomllib.loads(PUBLISHED.read_text())
    other = any(run["data"] != "btcv" for run in runs)
    budgets = sorted({run["budget"] for run in runs})
    here = [f"{metric} gain here, {budget:.0%}" for budget in budgets for metric in ("DSC", "ASD")]
    head = ["", "DSC", "DSC + DyCE", "printed gain", "ASD", "ASD + DyCE", *here]
    lines = [
        f"## Published, {'on another data set' if other else 'by another pipeline'}: {content['data']}",
        "",
        f"{content['source']} Not comparable with the numbers above and in the last columns. Numbers that are not at "
        "hand are said to be so. Gains here are over the seeds that have both losses; less distance is better.",
        "",
        _row(head),
        _row(["---", *["---:"] * (len(head) - 1)]),
    ]
    for name, entry in content["method"].items():
        own = [run for run in runs if run["method"] == name]
        if own:
            keys = ("dsc", "dsc_dyce", "dsc_gain", "asd", "asd_dyce")
            cells = [str(entry.get(key, "not at hand")) for key in keys]
            lines.append(_row([entry["name"], *cells, *_gains(own, budgets)]))
    return [*lines, "", "Errata of that table:", "", *(f"- {text}" for text in content["errata"])]


def _gains(runs: Sequence[dict[str, Any]], budgets: Sequence[float]) -> list[str]:
    """What DyCE changes in one method's Dice and distance, budget by budget."""
    cells = []
    for budget in budgets:
        pairs = pairs_of([run for run in runs if run["budget"] == budget])
        for metric in ("dsc", "asd"):
            values = [dyce["scores"][metric] - plain["scores"][metric] for plain, dyce in pairs]
            cells.append(_cell(values, "+.1f") if values else "–")
    return cells


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
