"""Maps of a number for each pixel on a CPU, in loops that numba compiles: what a class sums to, and selection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classbalance_losses.kernels import numba_map_loops as loops
from classbalance_losses.kernels.numba_memory import hand_over
from classbalance_losses.kernels.numba_threads import run


def labels_outside(target: Tensor, num_classes: int, ignore_index: int) -> int:
    """Return how many labels (int64) are neither a class nor ``ignore_index``."""
    total = _zeros(1)
    numbers = {"entries": target.numel(), "classes": num_classes, "ignored": ignore_index}
    _run(loops.labels_outside, numbers, label=target.contiguous(), total=total)
    return int(total)


def class_counts(target: Tensor, keep: Tensor, num_classes: int) -> Tensor:
    """Return the number of kept pixels of each class, (C,) of int64."""
    counts = _zeros(num_classes)
    _run(loops.class_counts, _sizes(target, num_classes), **_maps(target, keep), class_count=counts)
    return counts


def class_sums(value: Tensor, target: Tensor, keep: Tensor, num_classes: int) -> Tensor:
    """Return the float64 sum of ``value`` (float32) over the kept pixels of each class, (C,)."""
    parts = -(-target.numel() // loops.PART)
    sums = torch.zeros(parts, num_classes, dtype=torch.float64, device="cpu")
    numbers = {**_sizes(target, num_classes), "parts": parts}
    _run(loops.class_sums, numbers, **_maps(target, keep), value=value.contiguous(), class_sum=sums)
    return sums.sum(0)


def count(keep: Tensor) -> Tensor:
    """Return how many of a mask's entries are set, as int64."""
    total = _zeros()
    _run(loops.count, {"entries": keep.numel()}, keep=keep.contiguous(), total=total)
    return total


def per_pixel(class_value: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    """Return each kept pixel's entry of ``class_value`` (C,) of float32, in the target's shape, and 0 elsewhere."""
    spread = torch.empty(target.shape, dtype=torch.float32, device="cpu")
    sizes, table = _sizes(target, class_value.numel()), class_value.contiguous()
    _run(loops.per_pixel, sizes, **_maps(target, keep), table=table, spread=spread)
    return spread


def digit_counts(value: Tensor, keep: Tensor, prefix: int, shift: int) -> Tensor:
    """Count the 16-bit digits at ``shift`` of those kept entries (float32) whose bits above are ``prefix``."""
    counts = _zeros(loops.BINS)
    numbers = {"entries": value.numel(), "prefix": prefix, "shift": shift}
    _run(loops.digit_counts, numbers, value=value.contiguous(), keep=keep.contiguous(), bin_count=counts)
    return counts


def members(value: Tensor, keep: Tensor, below: int, mask: Tensor, tied: Tensor) -> None:
    """Write where a non-negative float32 is kept, and its bits, as a whole number, exceed ``below``; where by 1."""
    numbers, value, keep = {"entries": value.numel(), "below": below}, value.contiguous(), keep.contiguous()
    _run(loops.members, numbers, value=value, keep=keep, mask=mask, tied=tied)


def touch(fresh: Tensor) -> None:
    """Have the system provide the pages of uninitialised, dense memory, a huge page to a thread at a time.

    Loops whose threads write to the same page first would each wait while it is provided, and both may fill it.
    """
    start = -(-fresh.data_ptr() // loops.HUGE_PAGE) * loops.HUGE_PAGE
    size = fresh.data_ptr() + fresh.numel() * fresh.element_size() - start
    _run(loops.touch, {"entries": size, "page": start})


def _zeros(*size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.int64, device="cpu")


def _sizes(target: Tensor, num_classes: int) -> dict[str, int]:
    return {"entries": target.numel(), "classes": num_classes}


def _maps(target: Tensor, keep: Tensor) -> dict[str, Tensor]:
    return {"label": target.long().contiguous(), "keep": keep.contiguous()}


def _run(task: Any, numbers: Mapping[str, int], **tensors: Tensor) -> None:
    """Run a task on numbers, and on tensors, which have to be what `numba_map_loops.FIELDS` says."""
    job = np.zeros(1, loops.JOB)
    for name, number in numbers.items():
        job[name] = number
    hand_over(job, loops.FIELDS, tensors)
    run(task, job)
