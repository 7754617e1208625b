"""Sums over the pixels of each class: a cell a class, after the first, which is for pixels that do not count."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from classbalance_losses.kernels.cpu.math import compiled, doubles, summing, wide

COLUMNS = 4  # of a cell: pixels as a whole, pixels in part, the value, the squared value
_LANES = 4
_FEW = 1 << 6  # pixels for each class, up to which lanes cost more than they give


def lanes_for(pixels: int, classes: int) -> int:
    """Return how many cells a class has, for neighbours to be added to by turns."""
    return _LANES if classes * _FEW < pixels else 1


@compiled
def scale(values: Any, weight: Any, again: Any, tied: Any, share: Any, out: Any) -> None:
    """Write h q v, or h q² v; a weight of 0 times an infinite value is 0. Without ties ``tied`` has a size of 0."""
    for p in range(values.size):
        factor = weight[p] * again[p]
        product = values[p] * factor
        if tied.size:
            product *= share if tied[p] > 0 else np.float32(1)
        out[p] = np.float32(0) if (factor == 0) & (values[p] == np.inf) else product


@compiled
def add_pixels(own: Any, tied: Any, values: Any, squares: Any, sums: int, lanes: int, classes: int) -> None:
    """Add pixels to the cells of their classes at an address: -1 is for none; ``tied`` is 1 in part, or of size 0."""
    if classes == 2:
        _add_pixels_of_two(own, tied, values, squares, doubles(sums + 8 * COLUMNS, 2 * COLUMNS))
        return
    for p in range(own.size):  # by turns: else each would wait for its neighbour's sum
        cell = (p & (lanes - 1)) * (classes + 1) + own[p] + 1
        part = tied[p] if tied.size else np.float32(0)
        square = squares[p] if squares.size else np.float32(0)
        _add_pixel(sums + 8 * COLUMNS * cell, np.float32(1) - part, part, values[p], square)


@compiled
def _add_pixels_of_two(own: Any, tied: Any, values: Any, squares: Any, cells: Any) -> None:
    """Add a few hundred pixels of two classes, in vectors: this is quicker than to go by pixels."""
    parts, sums, of_squares = _sums(own, tied), _sums(own, values), _sums(own, squares)
    for k in range(2):
        cell = COLUMNS * k
        cells[cell] += _number(own, np.int32(k)) - parts[k]
        cells[cell + 1] += parts[k]
        cells[cell + 2] += sums[k]
        cells[cell + 3] += of_squares[k]


@summing
def _number(own: Any, k: np.int32) -> Any:
    """Return how many of a few hundred pixels are of a class: float32, for whole numbers would become wider."""
    number = np.float32(0)
    for p in range(own.size):
        number += np.float32(1) if own[p] == k else np.float32(0)
    return number


@summing
def _sums(own: Any, values: Any) -> Any:
    """Return the sums of both classes' numbers, which float32 would lose digits of; of none, 0."""
    wide()
    absent, present = 0.0, 0.0
    for p in range(values.size):
        value = values[p]
        absent += np.float64(value if own[p] == np.int32(0) else np.float32(0))
        present += np.float64(value if own[p] == np.int32(1) else np.float32(0))
    return absent, present


@intrinsic
def _add_pixel(_: Any, place: Any, whole: Any, tied: Any, value: Any, square: Any) -> Any:
    """Add four float32 to the four float64 at an address, at once: one by one it takes 1.3 times as long."""

    def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
        vector = ir.Constant(ir.VectorType(ir.FloatType(), COLUMNS), ir.Undefined)
        for k in range(COLUMNS):
            vector = builder.insert_element(vector, args[1 + k], ir.IntType(32)(k))
        wide = ir.VectorType(ir.DoubleType(), COLUMNS)
        sums = builder.inttoptr(args[0], wide.as_pointer())
        total = builder.fadd(builder.load(sums, align=8), builder.fpext(vector, wide))
        builder.store(total, sums, align=8)
        return ir.IntType(64)(0)

    return types.int64(types.int64, *[types.float32] * COLUMNS), generate
