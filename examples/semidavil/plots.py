"""Plots of a grid, drawn from its collected results alone."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from examples.common.figures import save_figure, score_bars
from examples.common.scoring import by_rarity
from examples.semidavil.collect import CONFIDENT, all_runs, class_gain, paired, shares, tests


def write_plots(results: Mapping[str, Any], folder: Path, name: str) -> dict[str, str]:
    """Write `FOLDER/NAME_*.png`; returns {file: title}. Nothing is drawn of what no run is finished for."""
    if not all_runs(results):
        return {}
    titles = {}
    for test, (main, *_) in tests(results).items():
        drawings = {
            f"{name}_scores_{test}.png": (scores(results, test, main), f"scores of each row on {test}"),
            f"{name}_gain_{test}.png": (gain(results, test), f"gain of DyCE on each class of {test}"),
            f"{name}_curves_{test}.png": (curves(results, test, main), f"learning curves on {test}"),
        }
        for file, (figure, title) in drawings.items():
            if figure is not None:
                save_figure(figure, folder / file)
                titles[file] = title
    return titles


def scores(results: Mapping[str, Any], test: str, main: str) -> Figure:
    """The bars of each row and label budget."""
    names = {budget: f"{budget} labels" for budget in next(iter(results["rows"].values()))}
    return score_bars(results["rows"], names, test, main, results["title"])


def gain(results: Mapping[str, Any], test: str) -> Figure | None:
    """IoU points of DyCE over CE on each class, the rarest first; None where no seed has both."""
    pairs = paired(results)
    if not pairs:
        return None
    base, other = results["compare"]
    share = shares(results, test)
    order = by_rarity(all_runs(results)[0]["scores"][test]["pixels"])
    classes = all_runs(results)[0]["classes"]
    figure, axes = plt.subplots(figsize=(9, 4.5))
    for number, (budget, runs) in enumerate(pairs.items()):
        gains = [[class_gain(pair, test, c) for c in order] for pair in runs]
        x = range(len(order))
        for seed in gains:
            axes.plot(x, seed, "o", color=f"C{number}", markersize=3, alpha=0.5)
        seeds = "1 seed" if len(runs) == 1 else f"{len(runs)} seeds"
        middle = [mean(column) for column in zip(*gains, strict=True)]
        axes.plot(x, middle, "-", color=f"C{number}", label=f"{budget} labels, {seeds}")
    axes.axhline(0, color="black", linewidth=0.8)
    ticks = [f"{classes[c].replace('_', ' ')} {100 * share[c]:.2g} %" for c in order]
    axes.set_xticks(range(len(order)), ticks, rotation=40, ha="right", fontsize=8)
    axes.set(xlabel=f"class and its share of the pixels of {test}, rarest first", ylabel="IoU points")
    axes.set_title(f"{results['title']}: “{other}” less “{base}”; dots are seeds", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def curves(results: Mapping[str, Any], test: str, main: str) -> Figure | None:
    """Two panels against the steps, mean IoU and the share of confident pixels: a colour a row, a line a run.

    None where no run was scored more than once.
    """
    if not any(len(run.get("curves", {}).get(test, ())) > 1 for run in all_runs(results)):
        return None
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), squeeze=False)
    panels = [(test, f"{main} on {test}, %"), (CONFIDENT, "pixels above the threshold of equation 4, %")]
    for panel, (key, title) in zip(axes[0], panels, strict=True):
        for number, (label, row) in enumerate(results["rows"].items()):
            for dashes, (budget, runs) in zip(cycle(("-", "--", ":", "-.")), row.items(), strict=False):
                lines = [run["curves"][key] for run in runs if key in run.get("curves", {})]
                for first, points in enumerate(lines):
                    steps, values = zip(*points, strict=True)
                    text = f"{label}, {budget} labels" if first == 0 else None
                    shares = [100 * value for value in values]
                    panel.plot(steps, shares, dashes, color=f"C{number}", linewidth=1.2, label=text)
        panel.set(xlabel="step", ylabel=title)
        panel.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(f"{results['title']}: a line is a run")
    return figure
