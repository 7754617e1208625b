"""What cross-entropy of label vectors does with a tile: value and gradient, by vectors that lie as logits do."""

from __future__ import annotations

from typing import Any

import numpy as np

from classbalance_losses.kernels.cpu.math import compiled, exp, floats, wide
from classbalance_losses.kernels.cpu.passes import (
    INF,
    LOG_SUM,
    NOTHING,
    ONE,
    TOTAL,
    VALUE,
    ZERO,
    Tile,
    clear,
    find_largest,
    log_prob,
    row,
    sum_beside_largest,
)
from classbalance_losses.kernels.cpu.tiles import complete, find_log_sum, map_at, write_kept


@compiled
def take_soft_tile(
    job: Any, x: Tile, shares: Tile, gradient: Tile, label: Any, maps: Any, pixel: int
) -> None:
    """Write the value or the gradient; a pixel without a label has -1 for one, and else 0."""
    complete(job, x)
    find_largest(x, maps)
    weight = floats(job.class_weight, x.classes if job.class_weight else 0)
    if job.gradient:
        find_log_sum(x, map_at(job.log_sum, pixel), maps)
        _add_shares(shares, weight, label, maps)
        slope = floats(map_at(job.slope, pixel), x.size)
        for k in range(x.classes):
            w = weight[k] if weight.size else ONE
            _write_slope(row(x, k), row(shares, k), w, slope, label, maps, row(gradient, k))
        return
    sum_beside_largest(x, NOTHING, maps)
    _add_shares(shares, weight, label, maps)
    clear(VALUE, x.size, maps)
    for k in range(x.classes):
        _add_value(row(x, k), row(shares, k), weight[k] if weight.size else ONE, maps)
    write_kept(maps, VALUE, label, job.value + 4 * pixel)
    if job.log_sum:
        kept = floats(map_at(job.log_sum, pixel), x.size)
        for p in range(x.size):
            kept[p] = maps[LOG_SUM + p]


@compiled
def _add_shares(shares: Tile, weight: Any, label: Any, maps: Any) -> None:
    """Write Σ w t, and which pixels have a label."""
    clear(TOTAL, shares.size, maps)
    label[:] = -1
    for k in range(shares.classes):
        share, w = row(shares, k), weight[k] if weight.size else ONE
        for p in range(share.size):
            maps[TOTAL + p] += w * share[p]
            label[p] = np.int32(0) if share[p] != ZERO else label[p]


@compiled
def _add_value(logit: Any, share: Any, w: Any, maps: Any) -> None:
    wide()
    for p in range(logit.size):
        part, surprise = w * share[p], -log_prob(logit, p, maps)
        maps[VALUE + p] += ZERO if (part == ZERO) & (surprise == INF) else part * surprise


@compiled
def _write_slope(logit: Any, share: Any, w: Any, slope: Any, label: Any, maps: Any, place: Any) -> None:
    wide()
    for p in range(logit.size):
        pulled = exp(log_prob(logit, p, maps)) * maps[TOTAL + p] - w * share[p]
        place[p] = slope[p] * pulled if label[p] >= 0 else ZERO
