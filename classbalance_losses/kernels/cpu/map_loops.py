"""The loops of `maps` and `select`: a thread takes a part of a row's pixels, and goes over it in chunks.

A row is an image or the whole batch. A pixel that does not count, or is not in H, has -1 for its class.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import carray

from classbalance_losses.kernels.cpu.class_cells import COLUMNS, add_pixels, scale
from classbalance_losses.kernels.cpu.labels import classes_of
from classbalance_losses.kernels.cpu.math import (
    add,
    compiled,
    flags,
    floats,
    integers,
    ordered,
    shorts,
    summing,
    take,
    task,
    words,
)
from classbalance_losses.kernels.cpu.memory import Field

PART = 1 << 14  # pixels, fixed: sums have one order, whatever the threads
BINS = 1 << 16
NARROW = 255  # an ignored label as a byte
_CHUNK = 1 << 10  # pixels whose numbers stay in the first-level cache

_SOME = 1 << 4  # pixels that are looked at one by one if one of them is asked for

_NUMBERS = (
    *("taken", "rows", "pixels", "parts", "classes", "cells", "lanes"),
    *("prefix", "shift", "low", "high"),
)
_MAP = ("rows", "pixels")
FIELDS = {
    **{name: Field(torch.float32, _MAP) for name in ("value", "squared", "weight", "ranked")},
    "bits": Field(torch.int64, ("rows",)),
    "share": Field(torch.float32, ("rows",)),
    "coefficient": Field(torch.float32, ("rows", "classes")),
    # What the loops write:
    "slope": Field(torch.float32, _MAP),
    "sums": Field(torch.float64, ("rows", "parts", "lanes", "cells", COLUMNS)),
    "count": Field(torch.int64, (BINS,)),
    "between": Field(torch.int32, ("pixels",)),
    "found": Field(torch.int64, ("parts", 3)),
    "outside": Field(torch.int64, (1,)),
    "narrow": Field(torch.uint8, _MAP),
}
JOB = np.dtype([(name, np.int64) for name in (*_NUMBERS, "label", "label_bytes", "ignored", *FIELDS)])


@compiled
def _outside(labels: Any, ignored: int, classes: int, narrow: Any) -> int:
    total = 0
    for p in range(labels.size):
        label = np.int64(labels[p])
        total += ((label < 0) | (label >= classes)) & (label != ignored)
    for p in range(narrow.size):
        label = np.int64(labels[p])
        narrow[p] = np.uint8(NARROW) if label == ignored else np.uint8(label)
    return total


@compiled
def _members(job: Any, row: int, place: int, own: Any, tied: Any) -> Any:
    """Write the classes of pixels, -1 off H, and 1 where one is in H in part, which it returns; else 0."""
    classes_of(job.label, job.label_bytes, place, job.ignored, job.classes, own)
    if not job.ranked:
        return np.float32(1)
    share = floats(job.share + 4 * row, 1)[0]
    threshold = np.int32(integers(job.bits + 8 * row, 1)[0])
    tie = threshold if share > 0 else np.int32(-1)
    ranked = words(job.ranked + 4 * place, own.size)
    for p in range(own.size):
        bits = ordered(ranked[p])
        own[p] = own[p] if (bits > threshold) | (bits == tie) else np.int32(-1)
        tied[p] = bits == tie
    return share


@compiled
def _spread(coefficient: Any, own: Any, weight: Any, tied: Any, share: Any, out: Any) -> None:
    if coefficient.size == 2:  # in vectors
        absent, present = coefficient[0], coefficient[1]
        for p in range(out.size):
            out[p] = present if own[p] == 1 else absent
    else:
        for p in range(out.size):
            out[p] = coefficient[max(own[p], 0)]
    for p in range(out.size):
        slope = out[p] * weight[p] * (share if tied[p] > 0 else np.float32(1))
        out[p] = slope if own[p] >= 0 else np.float32(0)


@task
def class_sums(memory: Any) -> None:
    """Sum over the pixels of each class in each part: a cell a class, after the first, which is for no class."""
    job = carray(memory, 1, JOB)[0]
    own, tied, ones = np.empty(_CHUNK, np.int32), np.zeros(_CHUNK, np.float32), np.ones(_CHUNK, np.float32)
    values, squares = np.zeros(_CHUNK, np.float32), np.zeros(_CHUNK, np.float32)
    part = take(memory)
    while part < job.rows * job.parts:
        row, start = part // job.parts, part % job.parts * PART
        sums = job.sums + 8 * COLUMNS * part * job.lanes * job.cells
        for first in range(start, min(start + PART, job.pixels), _CHUNK):
            size, place = min(_CHUNK, job.pixels - first), row * job.pixels + first
            share = _members(job, row, place, own[:size], tied)
            ties = tied[: size if job.ranked else 0]
            weight = floats(job.weight + 4 * place, size) if job.weight else ones[:size]
            if job.value:
                scale(floats(job.value + 4 * place, size), weight, ones, ties, share, values)
            if job.squared:
                scale(floats(job.squared + 4 * place, size), weight, weight, ties, share, squares)
            asked = squares[: size if job.squared else 0]
            add_pixels(own[:size], ties, values[:size], asked, sums, job.lanes, job.classes)
        part = take(memory)


@task
def class_slopes(memory: Any) -> None:
    """Write the gradient of the sums of values: the coefficient of each pixel's class times its factors, or 0."""
    job = carray(memory, 1, JOB)[0]
    own, tied, ones = np.empty(_CHUNK, np.int32), np.zeros(_CHUNK, np.float32), np.ones(_CHUNK, np.float32)
    part = take(memory)
    while part < job.rows * job.parts:
        row, start = part // job.parts, part % job.parts * PART
        coefficient = floats(job.coefficient + 4 * row * job.classes, job.classes)
        for first in range(start, min(start + PART, job.pixels), _CHUNK):
            size, place = min(_CHUNK, job.pixels - first), row * job.pixels + first
            share = _members(job, row, place, own[:size], tied)
            weight = floats(job.weight + 4 * place, size) if job.weight else ones[:size]
            _spread(coefficient, own[:size], weight, tied, share, floats(job.slope + 4 * place, size))
        part = take(memory)


@task
def digits(memory: Any) -> None:
    """Count the 16 bits at ``shift`` of a row's candidates whose bits above are the prefix."""
    job = carray(memory, 1, JOB)[0]
    own, count = np.empty(_CHUNK, np.int32), np.zeros(BINS, np.int64)
    shift, prefix = np.int32(job.shift), np.int32(job.prefix)
    part = take(memory)
    while part < job.parts:
        for first in range(part * PART, min((part + 1) * PART, job.pixels), _CHUNK):
            size = min(_CHUNK, job.pixels - first)
            classes_of(job.label, job.label_bytes, first, job.ignored, job.classes, own[:size])
            ranked = words(job.ranked + 4 * first, size)
            for p in range(size):
                number = ordered(ranked[p]) >> shift
                if (own[p] >= 0) & (number >> np.int32(16) == prefix):
                    count[number & 0xFFFF] += 1
        part = take(memory)
    for k in range(count.size):
        if count[k]:
            add(job.count + 8 * k, count[k])


@task
def between(memory: Any) -> None:
    """Count each part's candidates, those above ``high``, and those from ``low`` to it, whose bits it writes."""
    job = carray(memory, 1, JOB)[0]
    bits, low, high = np.empty(_CHUNK, np.int32), np.int32(job.low), np.int32(job.high)
    part = take(memory)
    while part < job.parts:
        start, inside = part * PART, 0
        found = integers(job.found + 24 * part, 3)
        out = words(job.between + 4 * start, min(PART, job.pixels - start))
        for first in range(start, start + out.size, _CHUNK):
            size = min(_CHUNK, start + out.size - first)
            classes_of(job.label, job.label_bytes, first, job.ignored, job.classes, bits[:size])
            _rank(words(job.ranked + 4 * first, size), bits)
            found[0] += _number(bits[:size], np.int32(0), np.int32(0x7FFFFFFF))
            found[1] += size - _number(bits[:size], np.int32(-1), high)
            for p in range(0, size, _SOME):
                some = bits[p : min(p + _SOME, size)]
                if _number(some, low, high):
                    inside = _keep(some, low, high, out, inside)
        found[2] = inside
        part = take(memory)


@compiled
def _rank(ranked: Any, bits: Any) -> None:
    """Write a candidate's bits in the place of its class, and leave -1."""
    for p in range(ranked.size):
        bits[p] = ordered(ranked[p]) if bits[p] >= 0 else np.int32(-1)


@summing
def _number(bits: Any, low: Any, high: Any) -> Any:
    """Return how many of at most a chunk are from ``low`` to ``high``."""
    number = np.float32(0)  # whole numbers would become wider
    for p in range(bits.size):
        number += np.float32(1) if (bits[p] >= low) & (bits[p] <= high) else np.float32(0)
    return np.int64(number)


@compiled
def _keep(bits: Any, low: Any, high: Any, out: Any, number: int) -> int:
    for p in range(bits.size):
        if (bits[p] >= low) & (bits[p] <= high):
            out[number] = bits[p]
            number += 1
    return number


@task
def labels_outside(memory: Any) -> None:
    """Count the labels that are neither a class nor ignored, and write those that are as bytes if asked."""
    job = carray(memory, 1, JOB)[0]
    part, total = take(memory), 0
    while part < job.parts:
        end = min((part + 1) * PART, job.pixels)
        for first in range(part * PART, end, _CHUNK):
            size = min(_CHUNK, end - first)
            narrow = flags(job.narrow + first, size if job.narrow else 0)
            total += _outside_of_any(job, first, size, narrow)
        part = take(memory)
    add(job.outside, total)


@compiled
def _outside_of_any(job: Any, first: int, size: int, narrow: Any) -> Any:
    place = job.label + job.label_bytes * first
    if job.label_bytes == 1:
        return _outside(flags(place, size), job.ignored, job.classes, narrow)
    if job.label_bytes == 2:
        return _outside(shorts(place, size), job.ignored, job.classes, narrow)
    if job.label_bytes == 4:
        return _outside(words(place, size), job.ignored, job.classes, narrow)
    return _outside(integers(place, size), job.ignored, job.classes, narrow)
