"""Labels of any type as classes, for loops: they are read as they came."""

from __future__ import annotations

from typing import Any

import numpy as np

from classbalance_losses.kernels.cpu.math import compiled, flags, integers, shorts, words


@compiled
def classes_of(label: int, width: int, first: int, ignored: int, classes: int, out: Any) -> None:
    """Write the classes of labels from the ``first`` on, as int32, and -1 where one is ignored.

    ``label`` is the address of all, ``width`` the bytes of one. A wrong one, which the losses have refused before,
    becomes any class: no loop shall write elsewhere.
    """
    place = label + width * first
    if width == 8:
        _classes(integers(place, out.size), ignored, True, classes - 1, out)
        return
    number, can_be, last = np.int32(ignored), np.int32(ignored) == ignored, np.int32(classes - 1)
    if width == 1:
        _classes(flags(place, out.size), number, can_be, last, out)
    elif width == 2:
        _classes(shorts(place, out.size), number, can_be, last, out)
    else:
        _classes(words(place, out.size), number, can_be, last, out)


@compiled
def _classes(labels: Any, ignored: Any, can_be: Any, last: Any, out: Any) -> None:
    """Write them in numbers of the type of ``ignored``, as narrow as may be: more of them make a vector."""
    kind = type(ignored)
    for p in range(out.size):
        label = kind(labels[p])
        kept = min(max(label, kind(0)), last)
        out[p] = kind(-1) if (label == ignored) & can_be else kept
