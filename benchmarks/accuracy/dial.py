"""Grids that differ in the share of one class alone: what each loss gains on it, over its share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks.accuracy.collect import GridResults
from benchmarks.accuracy.plots import BASELINE, colors_of
from benchmarks.accuracy.study import marked, paired_difference
from benchmarks.speed.table import table


def dials(grids: Sequence[GridResults]) -> list[GridResults]:
    """The grids with a diluted class, the one with the largest share first."""
    found = [grid for grid in grids if "dilute" in grid.recipe["data"]]
    return sorted(found, key=lambda grid: -grid.shares[_class(grid)])


def dial_section(grids: Sequence[GridResults]) -> list[str]:
    """The sentence and the table of some dials."""
    name = grids[0].classes[_class(grids[0])]
    return [
        f"## The dial: {name} from {_share(grids[0])} down to {_share(grids[-1])}",
        f"The same number of training images, of which fewer and fewer have a {name}; the test set stays. IoU of "
        f"{name} with {BASELINE}, and each loss's lead over it in points with its 95 % interval over pairs of seeds: "
        "**bold** wins, *italic* loses, the others tie.",
        dial_table(grids),
    ]


def dial_table(grids: Sequence[GridResults]) -> str:
    """One row a loss, one column a share: cross-entropy's IoU of the class, and what the others have over it."""
    rows = [[label, *(_cell(grid, label) for grid in grids)] for label in grids[0].labels]
    counts = (grid.recipe["data"]["dilute"]["images"] for grid in grids)
    return table(
        ["loss", *(f"{_share(grid)}, {n} images" for grid, n in zip(grids, counts, strict=True))], rows
    )


def dial_plot(grids: Sequence[GridResults]) -> Figure:
    """The class's IoU against its share of the training pixels, a line a loss: mean over seeds, least and most."""
    figure, axes = plt.subplots(figsize=(7.5, 4.8))
    for label, color in colors_of(grids[0].labels).items():
        values = [_scores(grid, label) for grid in grids]
        middle = [mean(of) for of in values]
        spread = [
            [m - min(of) for m, of in zip(middle, values, strict=True)],
            [max(of) - m for m, of in zip(middle, values, strict=True)],
        ]
        shares = [100 * grid.shares[_class(grid)] for grid in grids]
        axes.errorbar(shares, middle, spread, fmt="o-", color=color, label=label, capsize=2, linewidth=1.2)
    name = grids[0].classes[_class(grids[0])]
    axes.set(xscale="log", xlabel=f"{name}'s share of the training pixels, %", ylabel=f"IoU of {name}, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _cell(grid: GridResults, label: str) -> str:
    if label == BASELINE:
        return f"{mean(_scores(grid, label)):.1f}"
    difference, half = paired_difference(grid, label, BASELINE, lambda entry: _iou(grid, entry))
    return marked(difference, half)


def _scores(grid: GridResults, label: str) -> list[float]:
    return [_iou(grid, run.scores[grid.tests[0]]) for run in grid.of(label)]


def _iou(grid: GridResults, entry: Mapping[str, Any]) -> float:
    return 100 * float(entry["iou"][_class(grid)])


def _class(grid: GridResults) -> int:
    return grid.classes.index(grid.recipe["data"]["dilute"]["class"])


def _share(grid: GridResults) -> str:
    return f"{100 * grid.shares[_class(grid)]:.2g} %"
