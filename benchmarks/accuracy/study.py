"""What a study says beyond scores: differences with their intervals, calibration, boundaries, speed of learning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import mean, median, stdev
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from scipy.stats import t as student

from benchmarks.accuracy.collect import GridResults, Result, rare_mean
from benchmarks.accuracy.plots import BASELINES, colors_of
from benchmarks.accuracy.quality import boundary_f1, calibration_error
from benchmarks.accuracy.search import main_score
from benchmarks.speed.table import table

_CONFIDENCE = 0.95


def baseline_of(results: GridResults) -> str | None:
    """The loss that others are compared with: cross-entropy, if it is there."""
    return next((label for label in BASELINES if label in results.labels), None)


def paired_difference(
    results: GridResults, label: str, other: str, score: Callable[[Mapping[str, Any]], float] = main_score
) -> tuple[float, float]:
    """The mean difference of two losses' scores over the seeds of both, and half its 95 % interval (Student's t).

    The seeds are pairs: same initial weights, same batches. Of fewer than two the interval is NaN.
    """
    scores = [
        {run.seed: score(run.scores[results.tests[0]]) for run in results.of(name)} for name in (label, other)
    ]
    difference = [scores[0][seed] - scores[1][seed] for seed in sorted(scores[0].keys() & scores[1].keys())]
    number = len(difference)
    if number < 2:
        return (mean(difference) if number else math.nan), math.nan
    half = float(student.ppf((1 + _CONFIDENCE) / 2, number - 1)) * stdev(difference) / math.sqrt(number)
    return mean(difference), half


def verdict(difference: float, half: float) -> str:
    """Whether a loss wins, loses, or neither: an interval that holds 0 is a tie."""
    if math.isnan(half) or abs(difference) <= half:
        return "tie"
    return "wins" if difference > 0 else "loses"


def lead_text(difference: float, half: float) -> str:
    """A difference and half its interval, if it has one."""
    return f"{difference:+.1f}" if math.isnan(half) else f"{difference:+.1f} ± {half:.1f}"


def marked(difference: float, half: float) -> str:
    """The same in bold where it wins, and in italics where it loses."""
    mark = {"wins": "**", "loses": "*", "tie": ""}[verdict(difference, half)]
    return f"{mark}{lead_text(difference, half)}{mark}"


def study_table(results: GridResults) -> str:
    """One row a loss: difference to cross-entropy, probabilities, boundaries, and steps to cross-entropy's final score.

    Calibration errors and boundaries are means over seeds and over the classes that have them.
    """
    base = baseline_of(results)
    assert base is not None
    goal = mean(main_score(run.scores[results.tests[0]]) for run in results.of(base))
    header = [
        "loss",
        f"over {base}, 95 % interval",
        "",
        "calibration error",
        "predicted / true share",
        "boundary F1",
        f"steps to {base}'s final score",
        *(
            []
            if results.is_binary
            else [f"{name}, rarest {len(results.rare)}" for name in ("recall", "precision")]
        ),
    ]
    rows = []
    for label in results.labels:
        difference, half = paired_difference(results, label, base)
        is_base = label == base
        steps = [_steps_to(run, goal) for run in results.of(label)]
        rows.append(
            [
                label,
                "" if is_base else lead_text(difference, half),
                "" if is_base else verdict(difference, half),
                f"{100 * _mean_of(results, label, _calibration):.2f} %",
                f"{_mean_of(results, label, _share_ratio):.2f}",
                f"{100 * _mean_of(results, label, _boundary):.1f}",
                f"{median(steps):.0f}" if math.isfinite(median(steps)) else "–",
                *([] if results.is_binary else _of_rarest(results, label)),
            ]
        )
    return table(header, rows)


def _of_rarest(results: GridResults, label: str) -> list[str]:
    """Recall and precision of the rarest classes, those left out that a run never predicts, or that never occur."""
    runs = [run.scores[results.tests[0]] for run in results.of(label)]
    found = (mean(rare_mean(run[name], results.rare) for run in runs) for name in ("recall", "precision"))
    return [f"{value:.1f}" if math.isfinite(value) else "–" for value in found]


def reliability_diagram(results: GridResults) -> Figure:
    """How often pixels are of the rarest class against their probability of it, a line a loss, of all seeds."""
    figure, axes = plt.subplots(figsize=(7, 5.5))
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    of = results.rare[0] - (1 if results.is_binary else 0)
    for label, color in colors_of(results.labels).items():
        runs = [run for run in results.of(label) if run.quality]
        bins = np.sum([run.quality["reliability"][of] for run in runs], axis=0)
        number, prob, hits = bins[bins[:, 0] > 0].T
        axes.plot(prob / number, hits / number, "o-", color=color, label=label, markersize=3, linewidth=1.1)
    name = results.classes[results.rare[0]]
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set(xlabel=f"probability of {name}", ylabel=f"share of pixels that are {name}")
    axes.set_title(f"{results.title}: {results.tests[0]}")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def has_quality(results: GridResults) -> bool:
    """Whether the runs were made since it is measured, and there is something to compare with."""
    return baseline_of(results) is not None and all(run.quality for run in results.runs)


def _mean_of(results: GridResults, label: str, measure: Callable[[Result], float]) -> float:
    return mean(measure(run) for run in results.of(label))


def _calibration(run: Result) -> float:
    return mean(calibration_error(of) for of in run.quality["reliability"])


def _share_ratio(run: Result) -> float:
    """Σ p over the pixels of the class: 1 of probabilities that are true on the whole."""
    ratios = [sum(b[1] for b in of) / max(sum(b[2] for b in of), 1) for of in run.quality["reliability"]]
    return mean(ratios)


def _boundary(run: Result) -> float:
    found = [boundary_f1(of) for of in run.quality["boundary"]]
    if len(found) == 2:
        return found[1]
    return mean(value for value in found if not math.isnan(value))


def _steps_to(run: Result, goal: float) -> float:
    """The first step at which a run was scored, and had this score or a better one; infinite if there is none."""
    scored = [(entry["step"], main_score(entry)) for entry in run.log if "mean_iou" in entry]
    return next((step for step, score in scored if score >= goal), math.inf)
