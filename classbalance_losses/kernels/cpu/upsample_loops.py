"""The loop of `upsample`: logits are interpolated a tile at a time, and the tile's gradient goes back the same way.

A thread takes a cell: some of an image's planes, lines and columns of logits, and the pixels from there to the next
cell. It widens the lines to the cell's pixels first, with all their classes, which stay in its cache. Rows of pixels
are mixed of two of them (in three dimensions, of two lines of each of two planes), as many as make up a tile.

What its pixels give to the planes, lines and columns that the next cell begins with, the cell adds there itself. So no
neighbours run at one time: every second cell of an axis has its turn, and then the others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import carray

from classbalance_losses.kernels.cpu import tiles
from classbalance_losses.kernels.cpu.math import compiled, floats, step, take, task
from classbalance_losses.kernels.cpu.memory import Field
from classbalance_losses.kernels.cpu.passes import PITCH, ROWS, Tile
from classbalance_losses.kernels.forms.cpu import FORM

FIELDS = {
    "x": Field(torch.float32, ("sources",)),
    "gradient": Field(torch.float32, ("sources",)),
    **tiles.FIELDS,
}
_NUMBERS = (
    *tiles.NUMBERS,
    "sources",  # entries of the logits
    "columns",  # pixels to which a line is widened at once
)
# Pixel i of an axis lies at max(step · i + shift, 0) / unit of the logits'. A cell has a group of the logits' indices;
# those whose turn it is are the one that "turn" says, and others at distances of "apart".
AXIS = np.dtype(
    [(name, np.int64) for name in ("low", "full", "step", "shift", "unit", "group", "turn", "apart")]
)
AXES = ("deep", "tall", "wide")
JOB = np.dtype(
    [
        *((name, np.int64) for name in (*_NUMBERS, *FIELDS)),
        *((name, AXIS) for name in AXES),
        ("form", FORM),
    ],
    align=True,
)
_ONE = np.float32(1)


class _Room(NamedTuple):
    """A thread's memory."""

    lines: Any  # widened lines (planes, lines, C, columns), and those of one plane of pixels
    mixed: Any
    x: Any  # a tile (C, rows, columns)
    line_slopes: Any  # the same for gradients
    mixed_slopes: Any
    slope: Any
    low: Any  # of each pixel of a row: the columns that it is mixed of, and the share of the second
    high: Any
    share: Any
    bound: Any  # of each column, the first pixel that lies there or beyond
    label: Any
    maps: Any


class _Cell(NamedTuple):
    """A cell or, where a row of its pixels is too long, a part of one."""

    image: int
    plane: int  # the first ones of the logits', and how many are read
    line: int
    column: int
    planes: int
    lines: int
    first_row: int
    end_row: int
    first: int  # pixel of a row, and how many there are
    size: int


@task
def pixel_pass(memory: Any) -> None:
    """Do what the job asks for with a cell after the other."""
    job = carray(memory, 1, JOB)[0]
    room = _room(job)
    cells = _turns(job.deep) * _turns(job.tall) * _turns(job.wide)
    total = job.images * cells
    parts = job.parts if job.sums or job.overlap or job.class_sums else total
    part = take(memory)
    while part < parts:
        for cell in range(total * part // parts, total * (part + 1) // parts):
            _take_cell(job, room, cell // cells, cell % cells, part)
        part = take(memory)


@compiled
def _room(job: Any) -> Any:
    planes, lines = _corners(job.deep, job.deep.group), _corners(job.tall, job.tall.group)
    block, tile = lines * job.channels * job.columns, job.classes * PITCH
    back = 1 if job.gradient else 0
    return _Room(
        np.empty(planes * block, np.float32),
        np.empty(block, np.float32),
        np.empty(tile, np.float32),
        np.empty(back * planes * block, np.float32),
        np.empty(back * block, np.float32),
        np.empty(tile if job.gradient or job.overlap else 0, np.float32),
        np.empty(job.columns, np.int32),
        np.empty(job.columns, np.int32),
        np.empty(job.columns, np.float32),
        np.empty(job.wide.group + 1, np.int64),
        np.empty(PITCH, np.int32),
        np.empty(ROWS * PITCH, np.float32),
    )


@step
def _take_cell(job: Any, room: Any, image: int, turn: int, part: int) -> None:
    deep, tall, wide = job.deep, job.tall, job.wide
    column, width, start, end = _cell(wide, turn % _turns(wide))
    line, height, first_row, end_row = _cell(tall, turn // _turns(wide) % _turns(tall))
    plane, _, first_plane, end_plane = _cell(deep, turn // (_turns(wide) * _turns(tall)))
    if first_row == end_row or first_plane == end_plane:
        return
    planes, lines = _corners(deep, 1), _corners(tall, height)
    rows = planes * lines * job.channels
    for first in range(start, end, job.columns):
        size = min(job.columns, end - first)
        cell = _Cell(image, plane, line, column, planes, lines, first_row, end_row, first, size)
        _places(wide, first, column, size, room)
        for i in range(rows):
            _widen(_source(job, job.x, cell, i), room, room.lines[i * size : (i + 1) * size])
        if job.gradient:
            _clear(room.line_slopes[: rows * size])
        for pixel_plane in range(first_plane, end_plane):
            _take_plane(job, room, cell, pixel_plane, part)
        if job.gradient:
            for j in range(width + 1):
                room.bound[j] = min(max(_first(wide, column + j) - first, 0), size)
            for i in range(rows):
                source = _source(job, job.gradient, cell, i)
                _narrow(room.line_slopes[i * size : (i + 1) * size], room, width, source)


@step
def _take_plane(job: Any, room: Any, cell: Any, plane: int, part: int) -> None:
    """Go over the cell's pixels of a plane."""
    lines, line_slopes, block = room.lines, room.line_slopes, cell.lines * job.channels * cell.size
    _, share = _place(job.deep, plane)
    if cell.planes == 2:
        lines, line_slopes = room.mixed, room.mixed_slopes
        _mix(room.lines[:block], room.lines[block:], share, lines[:block])
        if job.gradient:
            _clear(line_slopes[:block])
    # Of whole rows, several lie side by side in maps.
    step = max(PITCH // cell.size, 1) if cell.size == job.wide.full else 1
    for first in range(cell.first_row, cell.end_row, step):
        rows = min(step, cell.end_row - first)
        _load_rows(job, cell, first, rows, lines, room.x)
        row = (cell.image * job.deep.full + plane) * job.tall.full + first
        _take_tile(job, room, cell.image, row * job.wide.full + cell.first, rows * cell.size, part)
        if job.gradient:
            _store_rows(job, cell, first, rows, room.slope, line_slopes)
    if cell.planes == 2 and job.gradient:
        _unmix(line_slopes[:block], share, room.line_slopes[:block], room.line_slopes[block:])


@step
def _take_tile(job: Any, room: Any, image: int, pixel: int, size: int, part: int) -> None:
    x = Tile(np.int64(room.x.ctypes.data), size, job.classes, size)
    gradient = Tile(np.int64(room.slope.ctypes.data), size, job.classes, size)
    tiles.take_tile(job, x, gradient, room.label[:size], room.maps, image, pixel, part)


@compiled
def _turns(axis: Any) -> Any:
    """Return how many cells of an axis have their turn."""
    cells = (axis.low + axis.group - 1) // axis.group
    return (cells - axis.turn + axis.apart - 1) // axis.apart


@compiled
def _cell(axis: Any, turn: int) -> Any:
    """Return a cell's first index of the logits' and their number, and the first pixel and the one after the last."""
    first = (axis.turn + turn * axis.apart) * axis.group
    size = min(axis.group, axis.low - first)
    return first, size, _first(axis, first), _first(axis, first + size)


@compiled
def _corners(axis: Any, size: int) -> int:
    """Return how many of the logits' indices a cell of some size reads: one more than it has, if there is another."""
    return size + 1 if axis.low > 1 else 1


@compiled
def _first(axis: Any, index: int) -> Any:
    """Return the first pixel that lies at an index of the logits' or beyond."""
    if index >= axis.low:
        return axis.full
    place = index * axis.unit - axis.shift
    return min((place + axis.step - 1) // axis.step, axis.full) if index > 0 and place > 0 else 0


@compiled
def _place(axis: Any, pixel: int) -> Any:
    """Return the index behind which a pixel lies, and the share that the next one has in it."""
    place = max(axis.step * pixel + axis.shift, 0)
    return place // axis.unit, np.float32(place % axis.unit / axis.unit)


@compiled
def _places(axis: Any, first: int, column: int, size: int, room: Any) -> None:
    """Write the same of pixels from the ``first`` on, in vectors: the columns are counted from the cell's first."""
    step, shift, unit = np.float64(axis.step), np.float64(axis.shift), np.float64(axis.unit)
    low, high, share, last = room.low, room.high, room.share, np.int32(axis.low - 1 - column)
    for p in range(size):
        place = max(step * np.float64(first + p) + shift, 0.0)  # whole, and as such exact
        whole = np.floor(place / unit)
        low[p] = np.int32(whole - np.float64(column))
        high[p] = min(low[p] + np.int32(1), last)
        share[p] = np.float32((place - whole * unit) / unit)


@compiled
def _source(job: Any, logits: int, cell: Any, i: int) -> Any:
    """Return the logits of a cell's i-th line and class, from its first column on; beyond an end stands the last."""
    deep, tall, wide = job.deep, job.tall, job.wide
    plane = min(cell.plane + i // (cell.lines * job.channels), deep.low - 1)
    line = min(cell.line + i // job.channels % cell.lines, tall.low - 1)
    row = ((cell.image * job.channels + i % job.channels) * deep.low + plane) * tall.low + line
    return floats(logits + 4 * (row * wide.low + cell.column), wide.low - cell.column)


@compiled
def _widen(row: Any, room: Any, out: Any) -> None:
    low, high, share = room.low, room.high, room.share
    for p in range(out.size):
        out[p] = row[np.uint32(low[p])] * (_ONE - share[p]) + row[np.uint32(high[p])] * share[p]


@compiled
def _narrow(values: Any, room: Any, width: int, row: Any) -> None:
    """Add to columns what the pixels of a row give them."""
    bound, share = room.bound, room.share
    for j in range(width):
        low, high = np.float32(0), np.float32(0)
        for p in range(bound[j], bound[j + 1]):
            low += values[p] * (_ONE - share[p])
            high += values[p] * share[p]
        row[j] += low
        row[min(j + 1, row.size - 1)] += high


@compiled
def _load_rows(job: Any, cell: Any, first: int, rows: int, lines: Any, x: Any) -> None:
    """Mix rows of pixels, side by side for each class, of the cell's lines in a plane."""
    tall, size, block = job.tall, cell.size, job.channels * cell.size
    beyond = job.classes - job.channels  # class 0 of single logits
    for r in range(rows):
        line, share = _place(tall, first + r)
        for k in range(job.channels):
            low = (line - cell.line) * block + k * size
            out = x[((beyond + k) * rows + r) * size : ((beyond + k) * rows + r + 1) * size]
            if tall.low > 1:
                _mix(lines[low : low + size], lines[low + block : low + block + size], share, out)
            else:
                _copy(lines[low : low + size], out)


@compiled
def _store_rows(job: Any, cell: Any, first: int, rows: int, slope: Any, lines: Any) -> None:
    """Add to the lines what the gradient of such rows gives them."""
    tall, size, block = job.tall, cell.size, job.channels * cell.size
    beyond = job.classes - job.channels  # class 0 of single logits
    for r in range(rows):
        line, share = _place(tall, first + r)
        for k in range(job.channels):
            low = (line - cell.line) * block + k * size
            values = slope[((beyond + k) * rows + r) * size : ((beyond + k) * rows + r + 1) * size]
            if tall.low > 1:
                _unmix(values, share, lines[low : low + size], lines[low + block : low + block + size])
            else:
                _add(values, lines[low : low + size])


@compiled
def _mix(one: Any, other: Any, share: Any, out: Any) -> None:
    for p in range(out.size):
        out[p] = one[p] * (_ONE - share) + other[p] * share


@compiled
def _unmix(values: Any, share: Any, one: Any, other: Any) -> None:
    for p in range(values.size):
        one[p] += values[p] * (_ONE - share)
        other[p] += values[p] * share


@compiled
def _clear(values: Any) -> None:
    for p in range(values.size):
        values[p] = 0


@compiled
def _copy(values: Any, out: Any) -> None:
    for p in range(values.size):
        out[p] = values[p]


@compiled
def _add(values: Any, out: Any) -> None:
    for p in range(values.size):
        out[p] += values[p]
