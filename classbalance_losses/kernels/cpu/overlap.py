"""Passes over a tile for sums of probabilities over an image: what it adds to them, and the gradient that they give.

They come before and after those of a form, and need the largest logit and log Σ alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from classbalance_losses.kernels.cpu.math import compiled, exp, floats
from classbalance_losses.kernels.cpu.passes import (
    ONE,
    OWN,
    SHARE,
    TOTAL,
    ZERO,
    Tile,
    clear,
    log_prob,
    row,
)


@compiled
def find_share(label: Any, weight: int, maps: Any) -> None:
    """Write q of each pixel, by the address of the weights if there are any; 0 where ignored."""
    weights = floats(weight, label.size)
    for p in range(label.size):
        q = weights[p] if weight else ONE
        maps[SHARE + p] = q if label[p] >= 0 else ZERO


@compiled
def add_overlap(x: Tile, label: Any, maps: Any, sums: Any) -> None:
    """Add q p_k to the first float64 sums (2, C), and that of the label to the second."""
    for k in range(x.classes):
        logit = row(x, k)
        for p in range(x.size):
            part = exp(log_prob(logit, p, maps)) * maps[SHARE + p]
            part = part if label[p] >= 0 else ZERO
            maps[TOTAL + p] = part
            maps[OWN + p] = part if label[p] == np.int32(k) else maps[OWN + p]
        sums[k] += _sum_up(TOTAL, x.size, maps)
    for p in range(x.size):
        if label[p] >= 0:
            sums[x.classes + label[p]] += maps[OWN + p]


@compiled
def _sum_up(first: int, size: int, maps: Any) -> Any:
    """Return the sum of a map, of which nothing is left: halves are added, in vectors and with few roundings."""
    while size > 1:
        half = (size + 1) // 2
        for p in range(first, first + size - half):
            maps[p] += maps[p + half]
        size = half
    return np.float64(maps[first])


@compiled
def add_overlap_gradient(x: Tile, gradient: Tile, label: Any, slopes: Any, maps: Any) -> None:
    """Add p_k (a_k - Σ p_j a_j) to the gradient, a_k = q (slope of P_k + [k = y] slope of I_k), the slopes (2, C)."""
    clear(TOTAL, x.size, maps)
    clear(OWN, x.size, maps)
    for k in range(x.classes):
        logit, every, own = row(x, k), slopes[k], slopes[x.classes + k]
        for p in range(x.size):
            prob = exp(log_prob(logit, p, maps))
            mine = prob * own if label[p] == np.int32(k) else ZERO
            maps[TOTAL + p] += prob * every + mine
            maps[OWN + p] += mine
    for k in range(x.classes):
        logit, place, every = row(x, k), row(gradient, k), slopes[k]
        for p in range(x.size):
            prob = exp(log_prob(logit, p, maps))
            pulled = prob * (every - maps[TOTAL + p]) + (maps[OWN + p] if label[p] == np.int32(k) else ZERO)
            place[p] += pulled * maps[SHARE + p] if label[p] >= 0 else ZERO
