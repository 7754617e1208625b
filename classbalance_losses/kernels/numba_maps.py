"""Maps of a number for each pixel on a CPU, in loops that numba compiles: what a class sums to, and selection."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from classbalance_losses.kernels import numba_map_loops as loops
from classbalance_losses.kernels.numba_threads import run


def labels_outside(target: Tensor, num_classes: int, ignore_index: int) -> int:
    """Return how many labels (int64) are neither a class nor ``ignore_index``."""
    count = torch.zeros(1, dtype=torch.int64)
    _run(
        loops.labels_outside,
        target.numel(),
        classes=num_classes,
        ignored=ignore_index,
        label=target,
        out=count,
    )
    return int(count)


def class_counts(target: Tensor, keep: Tensor, num_classes: int) -> Tensor:
    """Return the number of kept pixels of each class, (C,) of int64."""
    count = torch.zeros(num_classes, dtype=torch.int64)
    _run(loops.class_counts, target.numel(), classes=num_classes, label=target.long(), keep=keep, out=count)
    return count


def class_sums(value: Tensor, target: Tensor, keep: Tensor, num_classes: int) -> Tensor:
    """Return the float64 sum of ``value`` (float32) over the kept pixels of each class, (C,)."""
    parts = -(-target.numel() // loops.PART)
    sums = torch.zeros(parts, num_classes, dtype=torch.float64)
    maps = {"label": target.long(), "keep": keep, "value": value}
    _run(loops.class_sums, target.numel(), classes=num_classes, out=sums, **maps)
    return sums.sum(0)


def count(keep: Tensor) -> Tensor:
    """Return how many of a mask's entries are set, as int64."""
    total = torch.zeros((), dtype=torch.int64)
    _run(loops.count, keep.numel(), keep=keep, out=total)
    return total


def per_pixel(class_value: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    """Return each kept pixel's entry of ``class_value`` (C,) of float32, in the target's shape, and 0 elsewhere."""
    value = torch.empty(target.shape)
    maps = {"label": target.long(), "keep": keep, "value": class_value, "out": value}
    _run(loops.per_pixel, target.numel(), classes=class_value.numel(), **maps)
    return value


def digit_counts(value: Tensor, keep: Tensor, prefix: int, shift: int) -> Tensor:
    """Count the 16-bit digits at ``shift`` of those kept entries (float32) whose bits above are ``prefix``."""
    count = torch.zeros(1 << 16, dtype=torch.int64)
    _run(loops.digit_counts, value.numel(), value=value, keep=keep, prefix=prefix, shift=shift, out=count)
    return count


def at_least(value: Tensor, keep: Tensor, least: int) -> Tensor:
    """Return where a non-negative float32 is kept, and its bits, read as a whole number, are ``least`` or more."""
    chosen = torch.empty_like(keep, memory_format=torch.contiguous_format)
    _run(loops.at_least, value.numel(), value=value, keep=keep, least=least, out=chosen)
    return chosen


def touch(fresh: Tensor) -> None:
    """Have the system provide the pages of uninitialised, dense memory, a huge page to a thread at a time.

    Loops whose threads write to the same page first would each wait while it is provided, and both may fill it.
    """
    start = -(-fresh.data_ptr() // loops.HUGE_PAGE) * loops.HUGE_PAGE
    size = fresh.data_ptr() + fresh.numel() * fresh.element_size() - start
    _run(loops.touch, size, out=start)


def _run(task: Any, entries: int, **fields: Tensor | int) -> None:
    """Run a task on numbers, and on tensors, which are made contiguous."""
    job = np.zeros(1, loops.JOB)
    job["entries"] = entries
    held = {
        name: value.contiguous() if isinstance(value, Tensor) else value for name, value in fields.items()
    }
    for name, value in held.items():
        job[name] = value.data_ptr() if isinstance(value, Tensor) else value
    run(task, job)
