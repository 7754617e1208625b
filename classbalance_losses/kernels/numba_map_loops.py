"""The loops of numba_maps, over maps of a number for each pixel: a thread takes ``PART`` pixels at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import carray

from classbalance_losses.kernels.numba_math import (
    add,
    compiled,
    doubles,
    flags,
    floats,
    integers,
    take,
    task,
    words,
)
from classbalance_losses.kernels.numba_memory import Field

PART = 1 << 14
HUGE_PAGE, SMALL_PAGE = 1 << 21, 1 << 12  # bytes
BINS = 1 << 16

_NUMBERS = ("taken", "entries", "classes", "parts", "ignored", "prefix", "shift", "below", "page")
FIELDS = {
    "label": Field(torch.int64, ("entries",)),
    "keep": Field(torch.bool, ("entries",)),
    "value": Field(torch.float32, ("entries",)),
    "table": Field(torch.float32, ("classes",)),
    # What the loops write:
    "total": Field(torch.int64, (1,)),
    "class_count": Field(torch.int64, ("classes",)),
    "class_sum": Field(torch.float64, ("parts", "classes")),
    "bin_count": Field(torch.int64, (BINS,)),
    "spread": Field(torch.float32, ("entries",)),
    "mask": Field(torch.bool, ("entries",)),
    "tied": Field(torch.bool, ("entries",)),
}
JOB = np.dtype([(name, np.int64) for name in (*_NUMBERS, *FIELDS)])


@compiled
def _ordered(bits: int) -> Any:
    """Return what sorts as the non-negative floats do: -0.0 and NaN may have a sign."""
    return np.int64(bits) & 0x7FFFFFFF


@compiled
def _class(label: int, classes: int) -> Any:
    """Return a label as a class: a wrong one, which the losses have refused before, shall not write elsewhere."""
    return min(max(label, 0), classes - 1)


@task
def labels_outside(memory: Any) -> None:
    """Count the labels that are neither a class nor ignored."""
    job = carray(memory, 1, JOB)[0]
    first = take(memory) * PART
    while first < job.entries:
        label = integers(job.label + 8 * first, min(PART, job.entries - first))
        outside = 0
        for p in range(label.size):
            outside += ((label[p] < 0) | (label[p] >= job.classes)) & (label[p] != job.ignored)
        add(job.total, outside)
        first = take(memory) * PART


@task
def class_counts(memory: Any) -> None:
    """Count the kept pixels of each class."""
    job = carray(memory, 1, JOB)[0]
    counts = np.zeros(job.classes, np.int64)
    first = take(memory) * PART
    while first < job.entries:
        size = min(PART, job.entries - first)
        label, keep = integers(job.label + 8 * first, size), flags(job.keep + first, size)
        for p in range(size):
            if keep[p]:
                counts[_class(label[p], job.classes)] += 1
        first = take(memory) * PART
    for k in range(job.classes):
        add(job.class_count + 8 * k, counts[k])


@task
def class_sums(memory: Any) -> None:
    """Sum over the kept pixels of each class in each part, (parts, C): a sum that no thread's haste can change."""
    job = carray(memory, 1, JOB)[0]
    part = take(memory)
    while part < job.parts:
        first = part * PART
        size = min(PART, job.entries - first)
        label, keep = integers(job.label + 8 * first, size), flags(job.keep + first, size)
        value = floats(job.value + 4 * first, size)
        sums = doubles(job.class_sum + 8 * part * job.classes, job.classes)
        for p in range(size):
            if keep[p]:
                sums[_class(label[p], job.classes)] += value[p]
        part = take(memory)


@task
def count(memory: Any) -> None:
    """Count the flags that are set."""
    job = carray(memory, 1, JOB)[0]
    first = take(memory) * PART
    while first < job.entries:
        keep, total = flags(job.keep + first, min(PART, job.entries - first)), 0
        for p in range(keep.size):
            total += keep[p]
        add(job.total, total)
        first = take(memory) * PART


@task
def per_pixel(memory: Any) -> None:
    """Write each kept pixel's entry of ``table`` (C,), and 0 elsewhere."""
    job = carray(memory, 1, JOB)[0]
    # A last entry of 0 and no branch, which would often be guessed wrong.
    table = np.zeros(job.classes + 1, np.float32)
    for k in range(job.classes):
        table[k] = floats(job.table, job.classes)[k]
    first = take(memory) * PART
    while first < job.entries:
        size = min(PART, job.entries - first)
        label, keep = integers(job.label + 8 * first, size), flags(job.keep + first, size)
        out = floats(job.spread + 4 * first, size)
        for p in range(size):
            out[p] = table[_class(label[p], job.classes) if keep[p] else job.classes]
        first = take(memory) * PART


@task
def digit_counts(memory: Any) -> None:
    """Count the 16 bits at ``shift`` of those kept entries whose bits above are the prefix."""
    job = carray(memory, 1, JOB)[0]
    counts = np.zeros(BINS, np.int64)
    first = take(memory) * PART
    while first < job.entries:
        size = min(PART, job.entries - first)
        bits, keep = words(job.value + 4 * first, size), flags(job.keep + first, size)
        for p in range(size):
            number = _ordered(bits[p])
            if keep[p] and (number >> job.shift) >> 16 == job.prefix:
                counts[(number >> job.shift) & 0xFFFF] += 1
        first = take(memory) * PART
    for k in range(counts.size):
        if counts[k]:
            add(job.bin_count + 8 * k, counts[k])


@task
def members(memory: Any) -> None:
    """Say of each entry whether it is kept, and its bits exceed ``below``, and whether they do by 1."""
    job = carray(memory, 1, JOB)[0]
    first = take(memory) * PART
    while first < job.entries:
        size = min(PART, job.entries - first)
        bits, keep = words(job.value + 4 * first, size), flags(job.keep + first, size)
        mask, tied = flags(job.mask + first, size), flags(job.tied + first, size)
        for p in range(size):
            number = _ordered(bits[p])
            mask[p] = keep[p] & (number > job.below)
            tied[p] = keep[p] & (number == job.below + 1)
        first = take(memory) * PART


@task
def touch(memory: Any) -> None:
    """Write to each page of ``entries`` bytes, the page's first byte."""
    job = carray(memory, 1, JOB)[0]
    first = take(memory) * HUGE_PAGE
    while first < job.entries:
        part = flags(job.page + first, min(HUGE_PAGE, job.entries - first))
        for p in range(0, part.size, SMALL_PAGE):
            part[p] = 0
        first = take(memory) * HUGE_PAGE
