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
    return "\n".join([*lines, "", *_published({run["method"] for run in runs}), ""])


def label_of(method: str, pixel: str) -> str:
    """A row's name: the method, and DyCE where it is used."""
    return _NAMES.get(method, method) + (" + DyCE" if pixel == "DyCE" else "")


def rows_of(runs: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """The (method, pixel loss) pairs of runs, in their order."""
    return list(dict.fromkeys((run["method"], run["pixel"]) for run in runs))


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation; the latter 0 for one value."""
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


def _cell(values: Sequence[float]) -> str:
    center, deviation = spread(values)
    return f"{center:.1f} ± {deviation:.1f}" if len(values) > 1 else f"{center:.1f}"


def _published(methods: set[str]) -> list[str]:
    """What is known of Table 5, which is about another data set."""
    content = tomllib.loads(PUBLISHED.read_text())
    lines = [
        f"## Published, on another data set: {content['data']}",
        "",
        f"{content['source']} Not comparable with the numbers above. Numbers that are not at hand are said to be so.",
        "",
        _row(["", "DSC", "DSC + DyCE", "printed gain", "ASD", "ASD + DyCE"]),
        _row(["---", *["---:"] * 5]),
    ]
    for name, entry in content["method"].items():
        if name in methods or name not in _NAMES:
            keys = ("dsc", "dsc_dyce", "dsc_gain", "asd", "asd_dyce")
            lines.append(_row([entry["name"], *(str(entry.get(key, "not at hand")) for key in keys)]))
    return [*lines, "", "Errata of that table:", "", *(f"- {text}" for text in content["errata"])]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
