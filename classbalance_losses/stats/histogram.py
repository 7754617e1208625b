"""How often each value is in an array of labels, in a small part of the time that decoding them takes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

BYTES = 256
PIECE = 2**26  # bytes that are counted at once: a line of Pillow's must be shorter than 2^31
MOST_BINS = 2**20  # beyond, sorting the values takes less memory than a bin for each

Array = np.ndarray[Any, Any]


class Counts(NamedTuple):
    """The values that occur, in ascending order, and the number of each."""

    values: Array
    numbers: Array


def count_values(labels: Array) -> Counts:
    """Count the values of an integer or boolean array of any shape."""
    flat = labels.ravel(order="K")  # the order in memory: a volume in Fortran's order is not copied
    if not flat.size:
        return _occurring(np.zeros(1, dtype=np.int64), 0)
    unsigned = flat.dtype.kind in "bu"
    low = 0 if unsigned else int(flat.min())
    high = BYTES - 1 if unsigned and flat.itemsize == 1 else int(flat.max())
    if low >= 0 and high < BYTES:
        return _occurring(_byte_counts(flat.astype(np.uint8, copy=False)), 0)
    flat = flat.astype(np.int64)
    if high - low < MOST_BINS:
        return _occurring(np.bincount(flat - low if low else flat), low)
    values, numbers = np.unique(flat, return_counts=True)
    return Counts(values, numbers)


def _occurring(numbers: Array, first: int) -> Counts:
    values = np.flatnonzero(numbers)
    return Counts(values + first, numbers[values])


def _byte_counts(flat: Array) -> Array:
    """Return how often each of the 256 bytes occurs.

    Pillow counts the channels of RGBA pixels in four tables, which do not wait for one another's sums, and it lets
    other threads run: numpy's bincount takes four times as long, and they wait.
    """
    try:
        from PIL import Image  # noqa: PLC0415
    except ModuleNotFoundError:
        return np.bincount(flat, minlength=BYTES)
    whole = flat.size // 4 * 4
    total = np.bincount(flat[whole:], minlength=BYTES)
    for start in range(0, whole, PIECE):
        piece = flat[start : min(start + PIECE, whole)]
        pixels = Image.frombuffer("RGBA", (piece.size // 4, 1), piece, "raw", "RGBA", 0, 1)
        total += np.array(pixels.histogram()).reshape(4, BYTES).sum(0)
    return total
