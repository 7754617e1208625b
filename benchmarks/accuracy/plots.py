"""Plots of a grid's results, drawn from the committed files alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.accuracy.collect import GridResults, Result, mean_and_std, positive_scores, rare_mean
from benchmarks.accuracy.search import main_score

BASELINE = "CE"
BASELINES = (BASELINE, "BCE")
Score = Callable[[GridResults, dict[str, Any]], float]  # of an entry of the log, in per cent


def iou_against_frequency(results: GridResults) -> Figure:
    """Every class's IoU, the classes ordered by their share of the training pixels; a line a loss."""
    figure, axes = plt.subplots(figsize=(9, 5))
    order = list(reversed(results.by_frequency))
    for label, color in colors_of(results.labels).items():
        iou = results.class_iou(label, results.tests[0])
        axes.plot([iou[c] for c in order], "o-", color=color, label=label, markersize=4, linewidth=1.2)
    axes.set_xticks(
        range(len(order)), [_tick(results, c) for c in order], rotation=40, ha="right", fontsize=8
    )
    axes.set(ylabel=f"IoU on {results.tests[0]}, %", title=f"{results.title}: IoU of each class")
    axes.set_xlabel("class and its share of the training pixels, rarest first")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def gain_over_baseline(results: GridResults) -> Figure:
    """A heat map: IoU points that each loss gains over cross-entropy on each class, rarest first."""
    order = list(reversed(results.by_frequency))
    labels = [label for label in results.labels if label != BASELINE]
    base = np.array(results.class_iou(BASELINE, results.tests[0]))
    gain = np.array([np.array(results.class_iou(label, results.tests[0])) - base for label in labels])[
        :, order
    ]
    bound = max(float(np.nanmax(np.abs(gain))), 1.0)
    figure, axes = plt.subplots(figsize=(1.5 + 0.75 * len(order), 1.6 + 0.42 * len(labels)))
    picture = axes.imshow(gain, cmap="RdBu", vmin=-bound, vmax=bound, aspect="auto")
    for (row, column), value in np.ndenumerate(gain):
        if not math.isnan(value):
            color = "white" if abs(value) > 0.6 * bound else "black"
            axes.text(
                column,
                row,
                f"{round(value, 1) + 0.0:+.1f}",
                ha="center",
                va="center",
                fontsize=8,
                color=color,
            )
    axes.set_xticks(
        range(len(order)), [_tick(results, c) for c in order], rotation=45, ha="right", fontsize=8
    )
    axes.set_yticks(range(len(labels)), labels)
    axes.set_title(f"{results.title}: IoU points over {BASELINE} on {results.tests[0]}, mean over seeds")
    figure.colorbar(picture, ax=axes, pad=0.01)
    return figure


def precision_against_recall(results: GridResults) -> Figure:
    """Where each loss stands between missed pixels and false alarms: a point a seed; grey: equal IoU."""
    figure, axes = plt.subplots(figsize=(7, 5.5))
    grid = np.linspace(1, 100, 200)
    recall, precision = np.meshgrid(grid, grid)
    iou = 1 / (1 / recall + 1 / precision - 1 / 100)  # in per cent, as its two parts
    lines = axes.contour(recall, precision, iou, levels=range(10, 100, 10), colors="0.8", linewidths=0.8)
    axes.clabel(lines, fmt="IoU %d", fontsize=7)
    for label, color in colors_of(results.labels).items():
        scores = results.columns(label, results.tests[0])
        axes.plot(scores["recall"], scores["precision"], "o", color=color, label=label, markersize=5)
    name = results.classes[1]
    axes.set(xlabel=f"recall of {name}, %", ylabel=f"precision of {name}, %", xlim=(0, 100), ylim=(0, 100))
    axes.set_title(f"{results.title}: {results.tests[0]}, a point a seed")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def class_weights_over_time(results: GridResults) -> Figure | None:
    """GBW's weight of every class against steps, one panel a GBW loss, first seed; None without such a run."""
    runs: dict[str, Result] = {}
    for run in results.runs:
        if any("class_weight" in entry for entry in run.log):
            runs.setdefault(run.label, run)
    if not runs:
        return None
    figure, row = plt.subplots(1, len(runs), figsize=(5.5 * len(runs), 4), squeeze=False, sharey=True)
    order = list(reversed(results.by_frequency))
    colors = mpl.colormaps["turbo"](np.linspace(0.05, 0.95, len(order)))
    for axes, (label, run) in zip(row[0], runs.items(), strict=True):
        entries = [entry for entry in run.log if "class_weight" in entry]
        steps = [entry["step"] for entry in entries]
        for c, color in zip(order, colors, strict=True):
            weights = [entry["class_weight"][c] for entry in entries]
            axes.plot(steps, weights, color=color, linewidth=1.2, label=_tick(results, c))
        axes.set(title=f"{label}, seed {run.seed}", xlabel="step")
        axes.grid(alpha=0.3)
    row[0][0].set_ylabel("class weight $v_c$ (the weights sum to C)")
    row[0][-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), title="rarest first")
    return figure


def learning_curves(grids: list[GridResults]) -> Figure | None:
    """Score against steps of the losses of the longest grid; shorter grids' curves are dashed. Mean over seeds."""
    grids = [grid for grid in grids if any("mean_iou" in entry for run in grid.runs for entry in run.log)]
    if not grids:
        return None
    longest = max(grids, key=_iterations)
    panels: list[tuple[str, Score]] = [
        (f"{longest.score_name}, %", lambda _, entry: main_score(entry)),
        (
            f"mean IoU of the {len(longest.rare)} rarest classes, %",
            lambda grid, entry: rare_mean(entry["iou"], grid.rare),
        ),
    ]
    if longest.is_binary:
        panels = [
            (f"IoU of {longest.classes[1]}, %", lambda _, entry: positive_scores(entry)["IoU"]),
            (f"recall of {longest.classes[1]}, %", lambda _, entry: positive_scores(entry)["recall"]),
        ]
    figure, row = plt.subplots(1, 2, figsize=(12, 4.5))
    for axes, (title, score) in zip(row, panels, strict=True):
        for label, color in colors_of(longest.labels).items():
            for grid in grids:
                _curve(axes, grid, label, color, score, main=grid is longest)
        axes.set(xlabel="step", title=f"{title}, on {longest.tests[0]}")
        axes.grid(alpha=0.3)
    figure.legend(
        *row[0].get_legend_handles_labels(), fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 0)
    )
    return figure


def ablation(results: GridResults) -> Figure | None:
    """Both scores against the one keyword that differs between the losses; None where it is not one number."""
    varied = varied_keyword(results)
    if varied is None:
        return None
    values = {label: next(results.of(label)).loss["kwargs"][varied] for label in results.labels}
    labels = sorted(values, key=lambda label: values[label])
    figure, row = plt.subplots(1, 2, figsize=(10, 3.8))
    for axes, (title, score) in zip(
        row, [("mIoU, %", results.mean_iou), ("rarest 5 mean IoU, %", results.rare_iou)], strict=True
    ):
        for index, test in enumerate(results.tests):
            points = [mean_and_std(score(label, test)) for label in labels]
            axes.errorbar(
                range(len(labels)), [m for m, _ in points], [s for _, s in points],
                fmt="o-" if index == 0 else "o--", color=f"C{index}", capsize=3, label=test,
            )  # fmt: skip
        axes.set_xticks(range(len(labels)), [f"{values[label]:g}" for label in labels])
        axes.set(xlabel=varied, title=title)
        axes.grid(alpha=0.3)
    row[0].legend(fontsize=8)
    figure.suptitle(results.title, y=1.02)
    return figure


def varied_keyword(results: GridResults) -> str | None:
    """The keyword whose number differs between the losses of an ablation, None where the grid is none."""
    losses = [next(results.of(label)).loss for label in results.labels]
    if len(losses) < 2 or len({loss["name"] for loss in losses}) > 1:
        return None
    keywords = [
        key
        for key in losses[0]["kwargs"]
        if len({str(loss["kwargs"].get(key)) for loss in losses}) == len(losses)
    ]
    return keywords[0] if len(keywords) == 1 else None


def _curve(
    axes: Axes,
    grid: GridResults,
    label: str,
    color: Any,
    score: Score,
    *,
    main: bool,
) -> None:
    points: dict[int, list[float]] = {}
    for run in grid.of(label):
        for entry in run.log:
            if "mean_iou" in entry:
                points.setdefault(entry["step"], []).append(score(grid, entry))
    if not points:
        return
    steps = sorted(points)
    middle = np.array([np.mean(points[step]) for step in steps])
    name = f"{label}, {_iterations(grid)} steps, {_seeds(len(grid.seeds_of(label)))}"
    axes.plot(steps, middle, "o-" if main else "o--", color=color, markersize=3, label=name)
    if len(grid.seeds_of(label)) > 1:
        spread = np.array([np.std(points[step]) for step in steps])
        axes.fill_between(steps, middle - spread, middle + spread, color=color, alpha=0.15, linewidth=0)


def _seeds(number: int) -> str:
    return "1 seed" if number == 1 else f"{number} seeds"


def _iterations(grid: GridResults) -> int:
    return int(grid.recipe["training"]["iterations"])


def _tick(results: GridResults, c: int) -> str:
    return f"{results.classes[c]} {100 * results.shares[c]:.2g} %"


def colors_of(labels: list[str]) -> dict[str, Any]:
    """A colour for every loss: black for the baseline."""
    palette = "tab10" if len(labels) <= 11 else "tab20"
    others = cycle(mpl.colormaps[palette].colors)  # type: ignore[attr-defined]
    return {label: "black" if label in BASELINES else next(others) for label in labels}
