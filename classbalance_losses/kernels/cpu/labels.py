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
    if width == 1:
        _classes(flags(place, out.size), ignored, classes, out)
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
