"""A grid's pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib import pyplot as plt

from examples.common.figures import save_figure
from examples.common.scoring import by_rarity


def plot_means(title: str, rows: Mapping[str, Sequence[float]], path: Path) -> None:
    """A bar a row, a dot a seed."""
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.32 * len(rows)))
    for place, values in enumerate(rows.values()):
        if values:
            axes.barh(place, mean(values), 0.7, color="C0", alpha=0.45)
            axes.plot(values, [place] * len(values), "o", color="C0", markersize=4)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set(xlabel="mean IoU, %", title=f"{title}: bars are means, dots seeds")
    axes.grid(axis="x", alpha=0.3)
    save_figure(figure, path)


def plot_similarity(rows: Mapping[str, Sequence[Mapping[str, Any]]], test: str, path: Path) -> None:
    """Figure 1: each class's similarity across domains above, its IoU below; a bar a row, the mean over its seeds."""
    known = {label: runs for label, runs in rows.items() if runs and "similarity" in runs[0]["scores"][test]}
    first = next(iter(known.values()))[0]
    order = by_rarity(first["scores"][test]["pixels"])
    figure, panels = plt.subplots(2, 1, figsize=(1.5 + 0.9 * len(order), 6), sharex=True)
    width = 0.8 / len(known)
    for number, (label, runs) in enumerate(known.items()):
        entries = [run["scores"][test] for run in runs]
        for axes, values in zip(
            panels, ([e["similarity"]["classes"] for e in entries], [e["iou"] for e in entries]), strict=True
        ):
            heights = [_percent([one[c] for one in values]) for c in order]
            axes.bar([x + number * width for x in range(len(order))], heights, width, label=label)
    panels[0].set(ylabel="similarity to the source, x 100", title=f"Classes on {test}, the rarest first")
    panels[1].set(ylabel="IoU, %")
    panels[1].set_xticks(
        [x + 0.4 - width / 2 for x in range(len(order))],
        [first["classes"][c].replace("_", " ") for c in order],
        rotation=30,
        ha="right",
    )
    panels[0].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1.0))
    for axes in panels:
        axes.grid(axis="y", alpha=0.3)
    save_figure(figure, path)


def _percent(values: Sequence[float | None]) -> float:
    """The mean of those that were measured, in per cent; NaN, which draws no bar, where none was."""
    known = [value for value in values if value is not None]
    return 100 * mean(known) if known else nan
