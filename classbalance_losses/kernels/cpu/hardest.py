"""H without a map of values: class sums of what is surely in it, and the few pixels near its threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from classbalance_losses.kernels.cpu.class_cells import COLUMNS, add_pixels
from classbalance_losses.kernels.cpu.math import (
    compiled,
    doubles,
    floats,
    ordered,
    summing,
    within,
    words,
)
from classbalance_losses.kernels.cpu.passes import INF, LOG_REST, ONE, TOTAL, VALUE, ZERO

COUNTS = 2  # candidates; pixels between the bounds
KEPT = 3  # of a pixel: φ, q φ, its class
TOGETHER = 16  # pixels that are looked at together


@compiled
def add_hardest(job: Any, label: Any, weight: int, part: int, maps: Any) -> None:
    """Add a part's pixels whose φ has bits above the bounds to the sums of its classes, and keep those between them.

    Where there is no room for more the last place is written to again: the number tells.
    """
    place = np.int64(maps.ctypes.data)
    ranked, above = words(place + 4 * VALUE, label.size), words(place + 4 * TOTAL, label.size)
    weighted = maps[VALUE : VALUE + label.size]
    if weight:
        weighted = maps[LOG_REST : LOG_REST + label.size]
        _weigh(floats(weight, label.size), maps[VALUE : VALUE + label.size], weighted)
    bounds, counts = words(job.bounds, 2), doubles(job.hardest + 8 * COUNTS * part, COUNTS)
    low, high = bounds[0], bounds[1]
    for p in range(label.size):  # apart from the sums, which are not done in vectors with it
        above[p] = label[p] if ordered(ranked[p]) > high else np.int32(-1)
    sums = job.class_sums + 8 * COLUMNS * part * job.lanes * job.cells
    add_pixels(above, maps[:0], weighted, maps[:0], sums, job.lanes, job.classes)
    counts[0] += _candidates(label)
    kept = floats(job.kept + 4 * KEPT * job.room * part, KEPT * job.room)
    counts[1] = _keep_between(low, high, label, np.int64(counts[1]), kept, weighted, maps)


@compiled
def _weigh(q: Any, values: Any, weighted: Any) -> None:
    """Write q φ; a weight of 0 times an infinite value is 0."""
    for p in range(q.size):
        weighted[p] = ZERO if (q[p] == ZERO) & (values[p] == INF) else values[p] * q[p]


@summing
def _candidates(label: Any) -> Any:
    number = ZERO  # a whole number would become wider
    for p in range(label.size):
        number += ONE if label[p] >= 0 else ZERO
    return number


@compiled
def _keep_between(low: Any, high: Any, label: Any, number: int, kept: Any, weighted: Any, maps: Any) -> int:
    """Write the candidates from ``low`` to ``high`` after the ``number`` that there are, and return how many then."""
    room, first = kept.size // KEPT, np.int64(maps.ctypes.data) + 4 * VALUE
    for start in range(0, label.size, TOGETHER):
        found = _between(first + 4 * start, low, high)
        while found:  # which is rare
            p = start + _lowest(found)
            found &= found - 1
            if p < label.size and label[p] >= 0:
                place = min(number, room - 1)
                kept[place] = maps[VALUE + p]
                kept[room + place] = weighted[p]
                kept[2 * room + place] = np.float32(label[p])
                number += 1
    return number


@intrinsic
def _between(_: Any, place: Any, low: Any, high: Any) -> Any:
    """Return a bit for each of ``TOGETHER`` float32 at an address: whether its bits are from ``low`` to ``high``."""

    def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.IntType(32), TOGETHER)
        bits = builder.load(builder.inttoptr(args[0], vector.as_pointer()), align=4)
        ordered = builder.and_(bits, ir.Constant(vector, [0x7FFFFFFF] * TOGETHER))
        found = builder.bitcast(within(builder, ordered, *args[1:]), ir.IntType(TOGETHER))
        return builder.zext(found, ir.IntType(64))

    return types.int64(types.int64, types.int32, types.int32), generate


@intrinsic
def _lowest(_: Any, bits: Any) -> Any:
    """Return the place of the lowest bit that is 1."""

    def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.IntType(1)(1))

    return types.int64(types.int64), generate
