"""Passes over a tile for sums of probabilities over an image: what it adds to them, and the gradient that they give."""

from __future__ import annotations

from typing import Any

import numpy as np

from classbalance_losses.kernels.cpu.math import compiled, exp, floats, summing, wide
from classbalance_losses.kernels.cpu.passes import (
    LOG_SUM,
    NOTHING,
    ONE,
    OWN,
    PULL,
    SHARE,
    SLOPE,
    TIES,
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
def add_overlap(powers: Tile, label: Any, maps: Any, sums: Any) -> None:
    """Add q p_k, of e^(x - max), to the first float64 sums (2, C), and that of the label to the second."""
    wide()
    for p in range(powers.size):
        maps[SHARE + p] *= exp(-maps[LOG_SUM + p])
    for k in range(powers.classes):
        _find_parts(row(powers, k), label, np.int32(k), maps)
        sums[k] += _sum_up(TOTAL, powers.size, maps)
    for p in range(powers.size):
        if label[p] >= 0:
            sums[powers.classes + label[p]] += maps[OWN + p]


@compiled
def _find_parts(power: Any, label: Any, k: np.int32, maps: Any) -> None:
    wide()
    for p in range(label.size):
        part = power[p] * maps[SHARE + p] if label[p] >= 0 else ZERO
        maps[TOTAL + p] = part
        maps[OWN + p] = part if label[p] == k else maps[OWN + p]


@summing
def _sum_up(first: int, size: int, maps: Any) -> Any:
    """Return the sum of a map's numbers, few enough for float32."""
    total = ZERO
    for p in range(first, first + size):
        total += maps[p]
    return np.float64(total)


@compiled
def add_overlap_gradient(x: Tile, gradient: Tile, label: Any, slopes: Any, maps: Any) -> None:
    """Add p_k (a_k - Σ p_j a_j) to a gradient, a_k = q (slope of P_k + [k = y] slope of I_k), the slopes (2, C)."""
    wide()
    clear(PULL, x.size, maps)
    clear(OWN, x.size, maps)
    pull_overlap(x, NOTHING, label, slopes, maps)
    for k in range(x.classes):
        logit, place, every = row(x, k), row(gradient, k), slopes[k]
        for p in range(x.size):
            own = maps[OWN + p] if label[p] == np.int32(k) else ZERO
            pulled = exp(log_prob(logit, p, maps)) * (maps[PULL + p] + maps[SHARE + p] * every)
            place[p] += pulled - own if label[p] >= 0 else ZERO


@compiled
def pull_overlap(x: Tile, probs: Tile, label: Any, slopes: Any, maps: Any) -> None:
    """Add to A and B of a gradient p_k (A + q slope of P_k) - [k = y] B, and write p unless it is for ``NOTHING``."""
    wide()
    clear(TOTAL, x.size, maps)
    clear(TIES, x.size, maps)
    for k in range(x.classes):
        logit, kept, every, own = row(x, k), row(probs, k), slopes[k], slopes[x.classes + k]
        for p in range(x.size):
            prob = exp(log_prob(logit, p, maps))
            if kept.size:
                kept[p] = prob
            mine = prob * own if label[p] == np.int32(k) else ZERO
            maps[TOTAL + p] += prob * every + mine
            maps[TIES + p] += mine
    for p in range(x.size):
        maps[PULL + p] -= maps[SHARE + p] * maps[TOTAL + p]
        maps[OWN + p] -= maps[SHARE + p] * maps[TIES + p]


@compiled
def write_overlap_slope(place: Any, label: Any, k: np.int32, spread: Any, every: Any, maps: Any) -> None:
    """Write the gradient of a class in the place of p, of a form whose share in it is ``spread``, too."""
    wide()
    for p in range(label.size):
        own = maps[OWN + p] if label[p] == k else ZERO
        pulled = place[p] * (maps[PULL + p] + maps[SHARE + p] * every)
        place[p] = pulled - spread * maps[SLOPE + p] - own if label[p] >= 0 else ZERO
