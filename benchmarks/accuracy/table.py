"""Markdown tables of a grid's results."""

from __future__ import annotations

import math

from benchmarks.accuracy.collect import GridResults, mean_and_std


def summary_table(results: GridResults) -> str:
    """One row a loss: mIoU and the five rarest classes' mean IoU on every test set, mean ± std over seeds."""
    header = ["loss", "seeds"]
    for test in results.tests:
        header += [f"mIoU, {test}", f"rarest 5, {test}"]
    rows = []
    for label in results.labels:
        row = [label, str(len(results.seeds_of(label)))]
        for test in results.tests:
            row += [_spread(results.mean_iou(label, test)), _spread(results.rare_iou(label, test))]
        rows.append(row)
    return _table(header, rows)


def class_table(results: GridResults) -> str:
    """One row a loss, one column a class, the rarest first: IoU on the main test set, mean over seeds."""
    order = list(reversed(results.by_frequency))
    header = ["loss", *(f"{results.classes[c]} ({100 * results.shares[c]:.2g} %)" for c in order)]
    rows = []
    for label in results.labels:
        iou = results.class_iou(label, results.tests[0])
        rows.append([label, *(_number(iou[c]) for c in order)])
    return _table(header, rows)


def _spread(values: list[float]) -> str:
    middle, spread = mean_and_std(values)
    return f"{middle:.1f} ± {spread:.1f}" if len(values) > 1 else f"{middle:.1f}"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose columns also line up as plain text; numbers stand on the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for row in [header, rule, *rows]:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
