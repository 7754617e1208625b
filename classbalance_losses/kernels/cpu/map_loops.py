"""The loops of `maps` and `select`: a thread takes a part of a row's pixels, and goes over it in chunks.

A row is an image or the whole batch. A pixel that does not count, or is not in H, has -1 for its class.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from classbalance_losses.kernels.call import NARROW
from classbalance_losses.kernels.cpu.class_cells import COLUMNS, add_pixels, scale
from classbalance_losses.kernels.cpu.labels import byte_or_none, classes_of
from classbalance_losses.kernels.cpu.math import (
    add,
    compiled,
    flags,
    floats,
    integers,
    keep,
    lent,
    ordered,
    shorts,
    summing,
    take,
    task,
    wide,
    within,
    words,
)
from classbalance_losses.kernels.cpu.memory import Field

PART = 1 << 14  # pixels, fixed: sums have one order, whatever the threads
BINS = 1 << 16
_CHUNK = 1 << 10  # pixels whose numbers stay in the first-level cache

TOGETHER = 1 << 4  # pixels that are looked at together
BETWEEN = PART >> 2  # of a part: memory for more, were it used or not, takes time to get

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
    "between": Field(torch.int32, ("parts", BETWEEN)),
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


@summing
def _bytes_outside(labels: Any, ignored: Any, last: Any) -> Any:
    number = np.float32(0)  # a whole one would become wider
    for p in range(labels.size):
        label = np.int32(labels[p])
        number += np.float32(1) if (label > last) & (label != ignored) else np.float32(0)
    return np.int64(number)


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


@compiled
def _rows(room: Any) -> Any:
    """Return four maps of a chunk."""
    first = np.int64(room.ctypes.data)
    return (
        floats(first, _CHUNK),
        floats(first + 4 * _CHUNK, _CHUNK),
        floats(first + 8 * _CHUNK, _CHUNK),
        floats(first + 12 * _CHUNK, _CHUNK),
    )


@task
def class_sums(memory: Any) -> None:
    """Sum over the pixels of each class in each part: a cell a class, after the first, which is for no class."""
    job = carray(memory, 1, JOB)[0]
    classes, room = np.empty(_CHUNK, np.int32), np.zeros((4, _CHUNK), np.float32)
    room[3] = 1
    own, (tied, values, squares, ones) = lent(classes), _rows(room)
    part = take(memory)
    while part < job.rows * job.parts:
        row, start = part // job.parts, part % job.parts * PART
        sums = job.sums + 8 * COLUMNS * part * job.lanes * job.cells
        for first in range(start, min(start + PART, job.pixels), _CHUNK):
            size, place = min(_CHUNK, job.pixels - first), row * job.pixels + first
            share = _members(job, row, place, own[:size], tied)
            ties = tied[: size if job.ranked else 0]
            weight = floats(job.weight + 4 * place, size) if job.weight else ones[:size]
            value = values[: size if job.value or job.classes != 2 else 0]
            if job.value and not job.weight and not job.ranked:
                value = floats(job.value + 4 * place, size)
            elif job.value:
                scale(floats(job.value + 4 * place, size), weight, ones, ties, share, value)
            if job.squared:
                scale(floats(job.squared + 4 * place, size), weight, weight, ties, share, squares)
            asked = squares[: size if job.squared else 0]
            add_pixels(own[:size], ties, value, asked, sums, job.lanes, job.classes)
        part = take(memory)
    keep((classes, room))


@task
def class_slopes(memory: Any) -> None:
    """Write the gradient of the sums of values: the coefficient of each pixel's class times its factors, or 0."""
    job = carray(memory, 1, JOB)[0]
    classes, room = np.empty(_CHUNK, np.int32), np.zeros((4, _CHUNK), np.float32)
    room[3] = 1
    own, (tied, _, _, ones) = lent(classes), _rows(room)
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
    keep((classes, room))


@task
def digits(memory: Any) -> None:
    """Count the 16 bits at ``shift`` of a row's candidates whose bits above are the prefix."""
    job = carray(memory, 1, JOB)[0]
    classes, count = np.empty(_CHUNK, np.int32), np.zeros(BINS, np.int64)
    own = lent(classes)
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
    keep(classes)


@task
def between(memory: Any) -> None:
    """Count each part's candidates, those above ``high``, and those from ``low`` to it, whose bits it writes.

    Where there is no room for ``TOGETHER`` more what is written is of no use.
    """
    job = carray(memory, 1, JOB)[0]
    room, low, high = np.empty(_CHUNK, np.int32), np.int32(job.low), np.int32(job.high)
    bits = lent(room)
    part = take(memory)
    while part < job.parts:
        start, inside = part * PART, 0
        found = integers(job.found + 24 * part, 3)
        end, out = min(start + PART, job.pixels), job.between + 4 * BETWEEN * part
        for first in range(start, end, _CHUNK):
            size = min(_CHUNK, end - first)
            classes_of(job.label, job.label_bytes, first, job.ignored, job.classes, bits[:size])
            _rank(words(job.ranked + 4 * first, size), bits)
            valid, above = _number(bits[:size], high)
            found[0] += valid
            found[1] += above
            bits[size:] = -1
            for p in range(0, size, TOGETHER):
                place = np.int64(bits.ctypes.data) + 4 * p
                inside += _keep(place, low, high, out + 4 * min(inside, BETWEEN - TOGETHER))
        found[2] = inside
        part = take(memory)
    keep(room)


@compiled
def _rank(ranked: Any, bits: Any) -> None:
    """Write a candidate's bits in the place of its class, and leave -1."""
    for p in range(ranked.size):
        bits[p] = ordered(ranked[p]) if bits[p] >= 0 else np.int32(-1)


@summing
def _number(bits: Any, high: Any) -> Any:
    """Return how many of at most a chunk are candidates, and how many are above ``high``."""
    wide()
    valid, above = np.float32(0), np.float32(0)  # whole numbers would become wider
    for p in range(bits.size):
        valid += np.float32(1) if bits[p] >= 0 else np.float32(0)
        above += np.float32(1) if bits[p] > high else np.float32(0)
    return np.int64(valid), np.int64(above)


@intrinsic
def _keep(_: Any, place: Any, low: Any, high: Any, out: Any) -> Any:
    """Copy those of ``TOGETHER`` int32 that are from ``low`` to ``high`` side by side, and return how many."""

    def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
        word, vector = ir.IntType(32), ir.VectorType(ir.IntType(32), TOGETHER)
        source, out = (builder.inttoptr(args[k], kind.as_pointer()) for k, kind in ((0, vector), (3, word)))
        bits = builder.load(source, align=4)
        is_inside = within(builder, bits, args[1], args[2])
        kind = ir.FunctionType(ir.VoidType(), (vector, out.type, is_inside.type))
        name = f"llvm.masked.compressstore.v{TOGETHER}i32"
        builder.call(cgutils.get_or_insert_function(builder.module, kind, name), (bits, out, is_inside))
        return builder.zext(builder.ctpop(builder.bitcast(is_inside, ir.IntType(TOGETHER))), ir.IntType(64))

    return types.int64(types.int64, types.int32, types.int32, types.int64), generate


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
        return _bytes_outside(flags(place, size), byte_or_none(job.ignored), np.int32(job.classes - 1))
    if job.label_bytes == 2:
        return _outside(shorts(place, size), job.ignored, job.classes, narrow)
    if job.label_bytes == 4:
        return _outside(words(place, size), job.ignored, job.classes, narrow)
    return _outside(integers(place, size), job.ignored, job.classes, narrow)
