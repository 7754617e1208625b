"""Plots of a grid's results: Dice of each method, and what DyCE gains on each organ against the organ's frequency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from examples.synapse_ssl.report import label_of, pairs_of, rows_of, spread

_COLORS = {"CE": "#7a8793", "DyCE": "#c8553d"}


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG without a date or a version in it, so that equal plots are equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})


def bars(results: dict[str, Any], budget: float) -> Figure:
    """Mean Dice of every method with and without DyCE; the lines are standard deviations over seeds."""
    runs = [run for run in results["runs"] if run["budget"] == budget]
    figure = Figure(figsize=(1.5 + 0.8 * len(rows_of(runs)), 4))
    axes = figure.subplots()
    for place, (method, pixel) in enumerate(rows_of(runs)):
        values = [r["scores"]["dsc"] for r in runs if (r["method"], r["pixel"]) == (method, pixel)]
        center, deviation = spread(values)
        axes.bar(place, center, yerr=deviation if len(values) > 1 else None, color=_COLORS[pixel], capsize=3)
        axes.annotate(
            f"n={len(values)}", (place, 0), (0, 2), textcoords="offset points", ha="center", fontsize=7
        )
    names = [label_of(*row) for row in rows_of(runs)]
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
    axes.set(ylabel="Dice, %", title=f"{results['title']}, {budget:.0%} labelled")
    axes.grid(axis="y", alpha=0.3)
    return figure


def gain_against_frequency(results: dict[str, Any], budget: float) -> Figure:
    """Points of Dice that DyCE adds to each organ, against the organ's share of the labelled voxels."""
    runs = [run for run in results["runs"] if run["budget"] == budget]
    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for method in dict.fromkeys(run["method"] for run in runs):
        pairs = pairs_of([run for run in runs if run["method"] == method])
        if pairs:
            share = pairs[0][0]["class_share"][1:]
            gains = [
                [b - a for a, b in zip(*(r["scores"]["dsc_per_class"] for r in pair), strict=True)]
                for pair in pairs
            ]
            points = sorted(
                zip(share, (spread(column)[0] for column in zip(*gains, strict=True)), strict=True)
            )
            axes.plot(
                *zip(*points, strict=True),
                "o-",
                label=f"{label_of(method, 'CE')} ({len(pairs)})",
                markersize=4,
            )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="share of the labelled voxels", ylabel="Dice gained with DyCE, points")
    axes.set_title(f"{results['title']}, {budget:.0%} labelled; number of seeds in brackets", fontsize=10)
    axes.grid(alpha=0.3)
    if axes.lines[1:]:
        axes.legend(fontsize=8)
    return figure
