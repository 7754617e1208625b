"""The gradient of each pixel's value, by which a tile's gradient is multiplied."""

from __future__ import annotations

from typing import Any

import numpy as np

from classbalance_losses.kernels.cpu.math import chosen, compiled, floats, integers, ordered, words
from classbalance_losses.kernels.cpu.passes import GIVEN, ZERO, clear


@compiled
def map_at(first: int, pixel: int) -> int:
    """Return the address of a pixel's number in a map, or 0 if there is none."""
    return first + 4 * pixel if first else 0


@compiled
def find_slope(job: Any, label: Any, image: int, pixel: int, maps: Any) -> None:
    """Write the gradient of each pixel's value: given, or h q times its class's, or 0."""
    if job.slope:
        slope = floats(map_at(job.slope, pixel), label.size)
        for p in range(label.size):
            maps[GIVEN + p] = slope[p]
        return
    if not job.coefficient:
        clear(GIVEN, label.size, maps)
        return
    of_class = floats(job.coefficient, job.classes)
    if job.classes == 2:  # in vectors
        absent, present = of_class[0], of_class[1]
        for p in range(label.size):
            maps[GIVEN + p] = present if label[p] == 1 else absent
    else:
        for p in range(label.size):
            maps[GIVEN + p] = of_class[max(label[p], 0)]
    if job.pixel_weight:
        weight = floats(map_at(job.pixel_weight, pixel), label.size)
        for p in range(label.size):
            maps[GIVEN + p] *= weight[p]
    if job.ranked:
        ranked = words(map_at(job.ranked, pixel), label.size)
        take_hard(job, ranked, image * job.rows // job.images, maps)


@compiled
def take_hard(job: Any, ranked: Any, row: int, maps: Any) -> None:
    """Multiply by h, which of pixels off H is 0."""
    share = floats(job.tied_share + 4 * row, 1)[0]
    threshold = np.int32(integers(job.threshold + 8 * row, 1)[0])
    lowest = np.int32(threshold + (0 if share > 0 else 1))  # a sum is wider
    for p in range(ranked.size):
        bits, slope = np.int32(ordered(ranked[p])), maps[GIVEN + p]  # else they are wider
        tied = chosen(bits == threshold, slope * share, slope)
        maps[GIVEN + p] = chosen(bits < lowest, ZERO, tied)
