"""Plots of a grid, drawn from its collected results alone: scores, and class weights as in Figures 2 and 6a."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from examples.common.figures import save_figure, score_bars
from examples.uda_gbw.collect import Run, all_runs, tests, weight_ranges
from examples.uda_gbw.gain_plots import recall_and_confusion, spread_against_gain
from examples.uda_gbw.gains import comparisons


def write_plots(results: Mapping[str, Any], folder: Path, name: str) -> dict[str, str]:
    """Write `FOLDER/NAME_*.png`; returns {file: title}. Nothing is drawn of what no run is finished for."""
    if not all_runs(results):
        return {}
    titles = {}
    for test, main in tests(results):
        file = f"{name}_scores_{test}.png"
        titles[file] = f"scores of each row on {test}"
        save_figure(scores(results, test, main), folder / file)
    for compared in comparisons(results):
        pair = _slug(compared.title)
        for test, _ in tests(results):
            for kind, change in {"recall": recall_and_confusion, "spread": spread_against_gain}.items():
                file = f"{name}_{kind}_{pair}_{test}.png"
                titles[file] = f"{compared.title}, on {test}: {kind}"
                save_figure(change(compared, test), folder / file)
    for row, variant in results["weights_of"]:
        runs = results["rows"][row][variant]
        if runs:
            cell = _slug(f"{row} {variant}")
            for kind, draw in {"weights": weights_over_time, "ranges": weight_against_frequency}.items():
                file = f"{name}_{kind}_{cell}.png"
                titles[file] = f"class weights of {row}, {variant}: {kind}"
                save_figure(draw(runs[0], f"{row}, {variant}, seed {runs[0]['seed']}"), folder / file)
    return titles


def scores(results: Mapping[str, Any], test: str, main: str) -> Figure:
    """The bars of each row and variant."""
    names = {variant: variant for variant in next(iter(results["rows"].values()))}
    return score_bars(results["rows"], names, test, main, results["title"])


def weights_over_time(run: Run, title: str) -> Figure:
    """Figure 2: the weight of each class in the logged steps, a panel a loss."""
    figure, panels = _panels(run, title)
    for panel, history in zip(panels, run["class_weights"].values(), strict=True):
        for number, (name, values) in enumerate(
            zip(run["classes"], zip(*history["weights"], strict=True), strict=True)
        ):
            style = "-" if number < 10 else "--"  # matplotlib's colours come again after ten
            panel.plot(
                history["steps"],
                values,
                style,
                color=f"C{number % 10}",
                label=name.replace("_", " "),
                linewidth=1.2,
            )
        panel.axhline(1, color="black", linewidth=0.6)
        panel.set(xlabel="step")
    panels[0].set_ylabel("class weight")
    panels[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def weight_against_frequency(run: Run, title: str) -> Figure:
    """Figure 6a: from the least to the greatest weight of each class, a dot at the mean, by its share of the source."""
    figure, panels = _panels(run, title)
    total = sum(run["source_pixels"])
    for panel, classes in zip(panels, weight_ranges(run).values(), strict=True):
        for name, pixels, (low, middle, high) in zip(
            run["classes"], run["source_pixels"], classes, strict=True
        ):
            if pixels:
                share = 100 * pixels / total
                panel.plot([share, share], [low, high], color="C0", linewidth=2, alpha=0.6)
                panel.plot([share], [middle], "o", color="C0", markersize=4)
                panel.annotate(name.replace("_", " "), (share, high), rotation=60, fontsize=6)
        panel.axhline(1, color="black", linewidth=0.6)
        panel.set(xscale="log", xlabel="share of the source's pixels, %")
        panel.margins(y=0.2)
    panels[0].set_ylabel("class weight")
    return figure


def _panels(run: Run, title: str) -> tuple[Figure, Any]:
    losses = list(run["class_weights"])
    figure, axes = plt.subplots(
        1, len(losses), figsize=(1 + 4 * len(losses), 3.6), sharey=True, squeeze=False
    )
    for panel, loss in zip(axes[0], losses, strict=True):
        panel.set_title(f"loss of {loss.replace('_', ', ')}", fontsize=9)
        panel.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    return figure, axes[0]


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", label.replace("λ", "lambda").lower()).strip("_")
