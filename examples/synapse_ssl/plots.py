"""Plots of a grid's results: Dice of each method, and what DyCE gains on each class against its frequency."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.synapse_ssl.rows import Run, gains, label_of, pairs_of, rows_of, runs_at, shares, spread

_COLORS = {"CE": "#7a8793", "DyCE": "#c8553d"}
_GAINS = {"dsc": ("Dice", "o", "#c8553d"), "recall": ("recall", "^", "#2a6f97")}


def bars(results: dict[str, Any], budget: float) -> Figure:
    """Mean Dice of every method with and without DyCE; the lines are standard deviations over seeds."""
    rows = rows_of(runs_at(results, budget))
    figure = Figure(figsize=(1.5 + 0.8 * len(rows), 4))
    axes = figure.subplots()
    for place, ((_, pixel), runs) in enumerate(rows.items()):
        values = [run["scores"]["dsc"] for run in runs]
        center, deviation = spread(values)
        axes.bar(place, center, yerr=deviation if len(values) > 1 else None, color=_COLORS[pixel], capsize=3)
        axes.annotate(
            f"n={len(values)}", (place, 0), (0, 2), textcoords="offset points", ha="center", fontsize=7
        )
    names = [label_of(*row) for row in rows]
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
    axes.set(ylabel="Dice, %", title=f"{results['title']}, {budget:.0%} labelled")
    axes.grid(axis="y", alpha=0.3)
    return figure


def gain_against_frequency(results: dict[str, Any], budget: float) -> Figure | None:
    """Figure 6: a panel for each method, bars of the classes' shares, and the points that DyCE adds to each class.

    The classes stand from the most frequent to the rarest. The figure itself is not in the paper's text: what it says
    of it, a class distribution with frequencies below 1 % for four organs, and gains above 50, is read as shares of the
    foreground voxels and points of Dice. Recall is drawn beside Dice where it was recorded.

    Returns:
        None where no method has a seed with both losses.
    """
    pairs = pairs_of(runs_at(results, budget))
    if not pairs:
        return None
    width = 1.6 + 0.42 * (len(results["classes"]) - 1)
    figure = Figure(figsize=(0.8 + width * len(pairs), 3.8), layout="constrained")
    panels = figure.subplots(1, len(pairs), squeeze=False, sharey=True)[0]
    for panel, (setting, own) in zip(panels, pairs.items(), strict=True):
        _panel(panel, results["classes"][1:], own)
        panel.set_title(f"{setting.label} ({len(own)})", fontsize=9)
    panels[0].set_ylabel("gained with DyCE, points")
    panels[0].legend(fontsize=8)
    figure.supxlabel("bars: shares of the labelled foreground; brackets: numbers of seeds", fontsize=8)
    figure.suptitle(f"{results['title']}, {budget:.0%} labelled", fontsize=10)
    return figure


def _panel(axes: Axes, classes: list[str], pairs: list[tuple[Run, Run]]) -> None:
    share = shares(pairs)
    order = sorted(range(len(classes)), key=lambda k: -share[k])
    behind = axes.twinx()
    behind.bar(range(len(order)), [100 * share[k] for k in order], color="#d5dbe1")
    behind.set_yscale("log")
    behind.set_ylim(min(share) * 50, 150)
    behind.yaxis.set_visible(False)
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)
    for key, (name, marker, color) in _GAINS.items():
        columns = gains(pairs, key)
        points = [(place, *spread(columns[k])) for place, k in enumerate(order) if columns[k]]
        if points:
            places, centers, deviations = zip(*points, strict=True)
            axes.errorbar(
                places, centers, deviations, fmt=f"{marker}-", color=color, markersize=4, label=name
            )
    axes.axhline(0, color="black", linewidth=0.8)
    names = [f"{classes[k].replace('_', ' ')}, {100 * share[k]:.2g}%" for k in order]
    axes.set_xticks(range(len(order)), names, rotation=35, ha="right", fontsize=8)
    axes.grid(axis="y", alpha=0.3)
