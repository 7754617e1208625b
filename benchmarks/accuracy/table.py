"""Markdown tables of a grid's results."""

from __future__ import annotations

import math

from benchmarks.accuracy.collect import GridResults, mean_and_std
from benchmarks.accuracy.grid import best_of
from benchmarks.speed.table import table


def summary_table(results: GridResults) -> str:
    """One row a loss, mean ± std over seeds on every test set: mIoU and the rarest classes' mean IoU.

    Of one logit: IoU, F1, precision and recall of its class.
    """
    header, rows = ["loss", "seeds"], []
    for label in results.labels:
        columns = {
            f"{name}, {test}": values
            for test in results.tests
            for name, values in results.columns(label, test).items()
        }
        rows.append([label, str(len(results.seeds_of(label))), *map(spread, columns.values())])
    return table(header + list(columns), rows)


def class_table(results: GridResults) -> str:
    """One row a loss, one column a class, the rarest first: IoU on the main test set, mean over seeds."""
    order = list(reversed(results.by_frequency))
    header = ["loss", *(f"{results.classes[c]} ({100 * results.shares[c]:.2g} %)" for c in order)]
    rows = []
    for label in results.labels:
        iou = results.class_iou(label, results.tests[0])
        rows.append([label, *(_number(iou[c]) for c in order)])
    return table(header, rows)


def rate_table(results: GridResults) -> str:
    """One row a loss, one column a learning rate: the score on held-out training images, the chosen one bold."""
    rates = list(dict.fromkeys(rate for scores in results.rate_scores.values() for rate in scores))
    rows = []
    for label, scores in results.rate_scores.items():
        best = best_of(scores)
        rows.append([label, *(f"**{scores[r]:.1f}**" if r == best else f"{scores[r]:.1f}" for r in rates)])
    return table(["loss", *rates], rows)


def setting_table(results: GridResults) -> str:
    """One row a loss: the score of each setting that was tried on held-out training images, the best one bold."""
    rows = []
    for label, scores in results.setting_scores.items():
        best = best_of(scores)
        tried = (
            f"{name}: {f'**{score:.1f}**' if name == best else f'{score:.1f}'}"
            for name, score in scores.items()
        )
        rows.append([label, "; ".join(tried)])
    return table(["loss", "settings"], rows)


def spread(values: list[float]) -> str:
    """Mean ± standard deviation, of one seed the score alone."""
    if any(map(math.isnan, values)):
        return "–"
    middle, spread = mean_and_std(values)
    return f"{middle:.1f} ± {spread:.1f}" if len(values) > 1 else f"{middle:.1f}"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}"
