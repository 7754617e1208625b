"""The loops of `pixel`: a thread takes a tile after the other, brings its logits in order and its gradient in place."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import carray

from classbalance_losses.kernels.cpu.math import (
    as_bfloat16,
    as_float16,
    compiled,
    floats,
    halves,
    keep,
    lent,
    of_bfloat16,
    of_float16,
    step,
    take,
    task,
)
from classbalance_losses.kernels.cpu.passes import PITCH, ROWS, Tile
from classbalance_losses.kernels.cpu.soft_tiles import FIELDS as SOFT_FIELDS
from classbalance_losses.kernels.cpu.soft_tiles import take_soft_tile
from classbalance_losses.kernels.cpu.tiles import FIELDS, NUMBERS, is_pair, take_tile
from classbalance_losses.kernels.forms.cpu import FORM

# Types of logits, and what the loops call them.
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# Sizes, addresses, and strides in entries. Maps have a number for each pixel of (N, P), and no gaps.
_FIELDS = (
    *NUMBERS,
    *("size", "type"),  # of pixels that a thread takes, of the logits
    *("x", "x_image", "x_class", "x_pixel"),
    *("gradient", "gradient_image", "gradient_class", "gradient_pixel"),
    *("soft", "soft_image", "soft_class", "soft_pixel"),  # label vectors, instead of labels
    "has_log_sum",  # forward, from a pass before
    *FIELDS,
    *SOFT_FIELDS,
)
JOB = np.dtype([*((name, np.int64) for name in _FIELDS), ("form", FORM)])
_TOGETHER = 16  # pixels whose logits lie apart, and are read as far as they share a line of the cache


class Room(NamedTuple):
    """A thread's memory for a tile: see `tiles`."""

    values: Any  # logits that do not lie as the tile needs them
    slopes: Any  # their gradient; forward, e^(x - max) for the overlap
    shares: Any  # label vectors
    spare: Any  # what else is theirs
    maps: Any
    labels: Any


@task
def go(memory: Any) -> None:
    """Do what the job asks for with a part after the other."""
    job = carray(memory, 1, JOB)[0]
    has_powers = (job.overlap != 0) | (job.soft != 0) & (job.with_error != 0)
    size = _rows(job) * job.size
    apart = (job.type != 0) | (job.gradient_pixel != 1) | (_rows(job) > job.channels) | has_powers
    own = Room(
        np.empty(0 if _is_in_order(job) else size, np.float32),
        np.empty(size if apart else 0, np.float32),
        np.empty(size if job.soft and job.soft_pixel != 1 else 0, np.float32),
        np.empty(size if job.soft else 0, np.float32),
        np.empty(ROWS * PITCH, np.float32),
        np.empty(job.size, np.int32),
    )
    values, slopes, shares = lent(own.values), lent(own.slopes), lent(own.shares)
    room = Room(values, slopes, shares, lent(own.spare), lent(own.maps), lent(own.labels))
    tiles = (job.pixels + job.size - 1) // job.size
    part = take(memory)
    while part < job.parts:
        total = job.images * tiles
        for tile in range(total * part // job.parts, total * (part + 1) // job.parts):
            _take_tile(job, room, part, tile // tiles, tile % tiles * job.size)
        part = take(memory)
    keep(own)


@step
def _take_tile(job: Any, room: Any, part: int, image: int, first: int) -> None:
    label = room.labels[: min(job.size, job.pixels - first)]
    x, rows = _logits(job, image, first, label.size, room.values), _rows(job)
    place = image * job.gradient_image + first * job.gradient_pixel
    gradient = Tile(job.gradient + 4 * place, job.gradient_class, rows, label.size)
    if room.slopes.size:
        gradient = Tile(np.int64(room.slopes.ctypes.data), label.size, rows, label.size)
    pixel = image * job.pixels + first
    if job.soft:
        shares = _label_vectors(job, image, first, label.size, room.shares)
        spare = Tile(np.int64(room.spare.ctypes.data), label.size, job.classes, label.size)
        take_soft_tile(job, x, shares, gradient, spare, label, room.maps, image, pixel, part)
    else:
        take_tile(job, x, gradient, label, room.maps, image, pixel, part)
    if job.gradient and room.slopes.size:
        _put(job, place, label.size, room.slopes[(rows - job.channels) * label.size :])


@compiled
def _rows(job: Any) -> Any:
    """Return how many logits of a pixel a tile has: classes, but for single ones whose passes need no others."""
    return job.channels if is_pair(job) and not job.soft else job.classes


@compiled
def _is_in_order(job: Any) -> Any:
    is_whole, is_added = _rows(job) == job.channels, _rows(job) < job.classes  # by the passes
    return (job.type == 0) & (job.x_pixel == 1) & is_whole & (is_added | (job.bias == 0))


@compiled
def _logits(job: Any, image: int, first: int, size: int, room: Any) -> Tile:
    """Return float32 logits: as they stand, or copied to room, where that of class 0 is left out of single ones."""
    place, rows = image * job.x_image + first * job.x_pixel, _rows(job)
    if _is_in_order(job):
        return Tile(job.x + 4 * place, job.x_class, rows, size)
    values = room[(rows - job.channels) * size :]
    extent = (job.channels - 1) * job.x_class + (size - 1) * job.x_pixel + 1
    if job.type == 0:
        x = floats(job.x + 4 * place, extent)
        _copy_floats(x, job.x_class, job.x_pixel, values, size, 1, job.channels, size)
    else:
        x = halves(job.x + 2 * place, extent)
        if job.type == 1:
            _widen_bfloat16(x, job.x_class, job.x_pixel, values, size, 1, job.channels, size)
        else:
            _widen_float16(x, job.x_class, job.x_pixel, values, size, 1, job.channels, size)
    return Tile(np.int64(room.ctypes.data), size, rows, size)


@compiled
def _label_vectors(job: Any, image: int, first: int, size: int, room: Any) -> Tile:
    place = job.soft + 4 * (image * job.soft_image + first * job.soft_pixel)
    if not room.size:
        return Tile(place, job.soft_class, job.classes, size)
    soft = floats(place, (job.classes - 1) * job.soft_class + (size - 1) * job.soft_pixel + 1)
    _copy_floats(soft, job.soft_class, job.soft_pixel, room, size, 1, job.classes, size)
    return Tile(np.int64(room.ctypes.data), size, job.classes, size)


@compiled
def _put(job: Any, place: int, size: int, values: Any) -> None:
    """Write a gradient from ``values`` to its place."""
    extent = (job.channels - 1) * job.gradient_class + (size - 1) * job.gradient_pixel + 1
    step, pixel = job.gradient_class, job.gradient_pixel
    if job.type == 0:
        _copy_floats(
            values, size, 1, floats(job.gradient + 4 * place, extent), step, pixel, job.channels, size
        )
    else:
        out = halves(job.gradient + 2 * place, extent)
        if job.type == 1:
            _narrow_to_bfloat16(values, size, 1, out, step, pixel, job.channels, size)
        else:
            _narrow_to_float16(values, size, 1, out, step, pixel, job.channels, size)


@compiled
def _same(x: Any) -> Any:
    return x


def _copy(convert: Any) -> Any:
    """Return a loop that converts logits to another place with other strides."""

    @compiled
    def copy(
        source: Any,
        source_class: int,
        source_pixel: int,
        target: Any,
        target_class: int,
        target_pixel: int,
        classes: int,
        size: int,
    ) -> None:
        if (source_pixel == 1) & (target_pixel == 1):
            for k in range(classes):
                row, place = source[k * source_class :], target[k * target_class :]
                for p in range(size):
                    place[p] = convert(row[p])
        else:
            for start in range(0, size, _TOGETHER):
                for k in range(classes):
                    for p in range(start, min(start + _TOGETHER, size)):
                        target[k * target_class + p * target_pixel] = convert(
                            source[k * source_class + p * source_pixel]
                        )

    return copy


_copy_floats, _widen_bfloat16, _widen_float16, _narrow_to_bfloat16, _narrow_to_float16 = (
    _copy(convert) for convert in (_same, of_bfloat16, of_float16, as_bfloat16, as_float16)
)
