"""H of two classes as what lies above an edge among the margins u, see `pairs`: no value is ranked, and none kept.

Cross-entropy rises with u, so the largest losses are those of the largest margins; where u is NaN, so is the loss, and
it is larger than any number. Up to ``VANISHED`` it is 0: there all margins are the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from classbalance_losses.kernels.cpu.math import compiled, doubles, floats, summing, wide, words
from classbalance_losses.kernels.cpu.passes import INF, ONE, OWN, PULL, TOTAL, VALUE, VANISHED, ZERO
from classbalance_losses.kernels.cpu.slopes import multiply

SUMS = 10  # above, and then at one bound, both classes' pixels and values; candidates; pixels between
KEPT = 3  # of a pixel: u, its value, its class
TOGETHER = 16  # pixels that are looked at together


@compiled
def add_hardest(job: Any, label: Any, weight: int, part: int, maps: Any) -> None:
    """Add up a part's pixels above the bounds, and keep those between them or, where they are one, add them up too.

    Where there is no room for more the last place is written to again: the number tells.
    """
    if weight:
        _multiply_values(floats(weight, label.size), maps)
    bounds = floats(job.bounds, 2)
    low, high = bounds[0], bounds[1]
    sums = doubles(job.hardest + 8 * SUMS * part, SUMS)
    chosen = words(np.int64(maps.ctypes.data) + 4 * TOTAL, label.size)
    sums[8] += _candidates(label)
    _choose_above(label, high, chosen, maps)
    _add(chosen, maps, sums)
    if low == high:
        _choose_at(label, _first(high), high, chosen, maps)
        _add(chosen, maps, sums[4:])
    else:
        kept = floats(job.kept + 4 * KEPT * job.room * part, KEPT * job.room)
        sums[9] = _keep_between(_first(low), high, label, np.int64(sums[9]), kept, maps)


@compiled
def take_hardest(edge: int, size: int, maps: Any) -> None:
    """Multiply slopes by h, which there is one of at the edge and one above it."""
    bounds = floats(edge, 3)
    at, share, above = bounds[0], bounds[1], bounds[2]
    first = _first(at)
    for p in range(size):
        u = maps[OWN + p]
        maps[PULL + p] = (share if u >= first else ZERO) if u <= at else above
    multiply(size, maps)


@compiled
def _first(edge: Any) -> Any:
    """Return the lowest margin that is the same as an edge."""
    return edge if edge > VANISHED else -INF


@compiled
def _multiply_values(q: Any, maps: Any) -> None:
    """Multiply φ by the pixels' weights; a weight of 0 times an infinite value is 0."""
    for p in range(q.size):
        value = maps[VALUE + p]
        maps[VALUE + p] = ZERO if (q[p] == ZERO) & (value == INF) else value * q[p]


@compiled
def _choose_above(label: Any, edge: Any, chosen: Any, maps: Any) -> None:
    """Write the classes of pixels above the edge, else -1; apart from sums, which are not done in vectors with it."""
    for p in range(label.size):
        chosen[p] = np.int32(-1) if maps[OWN + p] <= edge else label[p]


@compiled
def _choose_at(label: Any, first: Any, edge: Any, chosen: Any, maps: Any) -> None:
    for p in range(label.size):
        u = maps[OWN + p]
        chosen[p] = label[p] if (u >= first) & (u <= edge) else np.int32(-1)


@summing
def _add(chosen: Any, maps: Any, sums: Any) -> None:
    """Add both classes' pixels and values: in float32 those of a tile, a few hundred in many lanes."""
    wide()
    absent, present, of_absent, of_present = ZERO, ZERO, ZERO, ZERO
    for p in range(chosen.size):
        value = maps[VALUE + p]
        absent += ONE if chosen[p] == 0 else ZERO
        present += ONE if chosen[p] == 1 else ZERO
        of_absent += value if chosen[p] == 0 else ZERO
        of_present += value if chosen[p] == 1 else ZERO
    sums[0] += absent
    sums[1] += present
    sums[2] += of_absent
    sums[3] += of_present


@summing
def _candidates(label: Any) -> Any:
    number = ZERO  # a whole number would become wider
    for p in range(label.size):
        number += ONE if label[p] >= 0 else ZERO
    return number


@compiled
def _keep_between(low: Any, high: Any, label: Any, number: int, kept: Any, maps: Any) -> int:
    """Write the candidates from ``low`` to ``high`` after the ``number`` that there are, and return how many then."""
    room = kept.size // KEPT
    first = np.int64(maps.ctypes.data) + 4 * OWN
    for p in range(label.size, -(-label.size // TOGETHER) * TOGETHER):
        maps[OWN + p] = np.float32(np.nan)
    for start in range(0, label.size, TOGETHER):
        found = _between(first + 4 * start, low, high)
        while found:  # which is rare
            p = start + _lowest(found)
            found &= found - 1
            if label[p] >= 0:
                place = min(number, room - 1)
                kept[place] = maps[OWN + p]
                kept[room + place] = maps[VALUE + p]
                kept[2 * room + place] = np.float32(label[p])
                number += 1
    return number


@intrinsic
def _between(_: Any, place: Any, low: Any, high: Any) -> Any:
    """Return a bit for each of ``TOGETHER`` float32 at an address: whether it is from ``low`` to ``high``."""

    def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.FloatType(), TOGETHER)
        numbers = builder.load(builder.inttoptr(args[0], vector.as_pointer()), align=4)
        compared = []
        for sign, bound in ((">=", args[1]), ("<=", args[2])):
            bounds = ir.Constant(vector, ir.Undefined)
            for k in range(TOGETHER):
                bounds = builder.insert_element(bounds, bound, ir.IntType(32)(k))
            compared.append(builder.fcmp_ordered(sign, numbers, bounds))
        bits = builder.bitcast(builder.and_(*compared), ir.IntType(TOGETHER))
        return builder.zext(bits, ir.IntType(64))

    return types.int64(types.int64, types.float32, types.float32), generate


@intrinsic
def _lowest(_: Any, bits: Any) -> Any:
    """Return the place of the lowest bit that is 1."""

    def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.IntType(1)(1))

    return types.int64(types.int64), generate
