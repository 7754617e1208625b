"""Labels of any type as classes, for loops: they are read as they came."""

from __future__ import annotations

from typing import Any

import numpy as np

from classbalance_losses.kernels.cpu.math import compiled, flags, inlined, integers, shorts, words


@compiled
def classes_of(label: int, width: int, first: int, ignored: int, classes: int, out: Any) -> None:
    """Write the classes of labels from the ``first`` on, as int32, and -1 where one is ignored.

    ``label`` is the address of all, ``width`` the bytes of one. A wrong one, which the losses have refused before,
    becomes any class: no loop shall write elsewhere.
    """
    place = label + width * first
    if width == 1:
        _byte_classes(flags(place, out.size), byte_or_none(ignored), np.int32(classes - 1), out)
    elif width == 2:
        _classes(shorts(place, out.size), ignored, classes, out)
    elif width == 4:
        _classes(words(place, out.size), ignored, classes, out)
    else:
        _classes(integers(place, out.size), ignored, classes, out)


@compiled
def _classes(labels: Any, ignored: int, classes: int, out: Any) -> None:
    for p in range(out.size):
        label = np.int64(labels[p])
        kept = min(max(label, 0), classes - 1)
        out[p] = -1 if label == ignored else kept


@compiled
def _byte_classes(labels: Any, ignored: Any, last: Any, out: Any) -> None:
    """The same of bytes, of which twice as many are done together."""
    for p in range(out.size):
        label = np.int32(labels[p])
        kept = min(label, last)
        out[p] = np.int32(-1) if label == ignored else kept


@inlined
def byte_or_none(ignored: int) -> Any:
    """Return a label as int32, to compare bytes with; what is none becomes one that no byte is."""
    return np.int32(ignored if 0 <= ignored < 256 else -1)
