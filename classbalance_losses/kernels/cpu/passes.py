"""Passes over a tile that all forms share: the largest logit, the label's, and the sum of powers.

A tile is some pixels with all their classes, which stay in a thread's cache meanwhile. ``maps`` is room for ``ROWS``
numbers of each pixel, in one array at constant distances, as loops that are done in vectors need it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from classbalance_losses.kernels.cpu.math import compiled, exp, expm1, floats, inlined, larger, log1p, wide

PITCH = 512
ROWS = 11
(HIGHEST, OWN, LOG_SUM, OTHERS, TIES, VALUE, TOTAL, LOG_REST, SLOPE, SHARE, GIVEN) = range(
    0, ROWS * PITCH, PITCH
)
PULL = OTHERS  # of backward
ZERO, ONE, INF = np.float32(0), np.float32(1), np.float32(np.inf)


class Tile(NamedTuple):
    """Float32 logits, or room for their gradient, class by class: of a class, the pixels lie side by side."""

    address: int
    stride: int  # of the classes, in entries
    classes: int
    size: int  # of pixels, at most ``PITCH``


NOTHING = Tile(0, 0, 0, 0)


@inlined
def row(tile: Tile, k: int) -> Any:
    """Return a class's entries."""
    return floats(tile.address + 4 * k * tile.stride, tile.size)


@compiled
def clear(first: int, size: int, maps: Any) -> None:
    """Write 0 to a map."""
    for p in range(first, first + size):
        maps[p] = ZERO


@compiled
def find_largest(x: Tile, maps: Any) -> None:
    """Write the largest logit."""
    wide()
    for k in range(x.classes):
        logit = row(x, k)
        for p in range(x.size):
            maps[HIGHEST + p] = logit[p] if k == 0 else larger(maps[HIGHEST + p], logit[p])


@compiled
def find_own(x: Tile, label: Any, maps: Any) -> None:
    """Write the label's logit less the largest; any, where there is no label."""
    logits = floats(x.address, (x.classes - 1) * x.stride + x.size)
    for p in range(x.size):
        maps[OWN + p] = logits[max(label[p], 0) * x.stride + p] - maps[HIGHEST + p]


@compiled
def sum_beside_largest(x: Tile, powers: Tile, maps: Any) -> None:
    """Write log Σ e^(x - max), of a sum without the 1 of the largest: what others there are is not lost in rounding.

    Here and in `sum_beside_label` e^(x - max) are written, too, unless ``powers`` is ``NOTHING``.
    """
    wide()
    clear(OTHERS, x.size, maps)
    clear(TIES, x.size, maps)
    for k in range(x.classes):
        logit, kept = row(x, k), row(powers, k)
        for p in range(x.size):
            power = exp(logit[p] - maps[HIGHEST + p])
            if kept.size:
                kept[p] = power
            is_largest = power == ONE
            maps[OTHERS + p] += ZERO if is_largest else power
            maps[TIES + p] += ONE if is_largest else ZERO
    for p in range(x.size):
        maps[LOG_SUM + p] = log1p(maps[OTHERS + p] + (maps[TIES + p] - ONE))


@compiled
def sum_beside_label(x: Tile, powers: Tile, label: Any, with_error: bool, maps: Any) -> None:
    """Write log Σ e^(x - max), of a sum without the label's part and, in the place of ties, ‖p - e_y‖² if asked."""
    clear(OTHERS, x.size, maps)
    clear(TIES, x.size, maps)
    for k in range(x.classes):
        if with_error:
            _add_others_and_squares(row(x, k), row(powers, k), label, np.int32(k), maps)
        else:
            _add_others(row(x, k), row(powers, k), label, np.int32(k), maps)
    for p in range(x.size):
        others, squares = maps[OTHERS + p], maps[TIES + p]
        more = others + expm1(maps[OWN + p])  # Σ - 1
        # ‖p − e_y‖² = Σ p_k² + (1 − p_y)² = Σ p_k² + (Σ p_k)² over k ≠ y, which subtracts nothing
        maps[TIES + p] = (squares + others * others) / (more + ONE) / (more + ONE)
        maps[LOG_SUM + p] = log1p(more)


@compiled
def _add_others(logit: Any, kept: Any, label: Any, k: np.int32, maps: Any) -> None:
    wide()
    for p in range(label.size):
        power = exp(logit[p] - maps[HIGHEST + p])
        if kept.size:
            kept[p] = power
        maps[OTHERS + p] += power if label[p] != k else ZERO


@compiled
def _add_others_and_squares(logit: Any, kept: Any, label: Any, k: np.int32, maps: Any) -> None:
    wide()
    for p in range(label.size):
        power = exp(logit[p] - maps[HIGHEST + p])
        if kept.size:
            kept[p] = power
        other = power if label[p] != k else ZERO
        maps[OTHERS + p] += other
        maps[TIES + p] += other * other


@inlined
def log_prob(logit: Any, p: int, maps: Any) -> Any:
    """Return log p of a class and a pixel."""
    return logit[p] - maps[HIGHEST + p] - maps[LOG_SUM + p]
