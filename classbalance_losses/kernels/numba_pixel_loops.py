"""The loops of numba_pixel: a thread takes some pixels with all their classes, which stay in its cache meanwhile."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import carray

from classbalance_losses.kernels.numba_math import (
    compiled,
    exp,
    flags,
    floats,
    halves,
    integers,
    log1p,
    logarithm,
    narrowed,
    take,
    task,
    widened,
)

# Maps of a number for each pixel, and what their numbers have to be.
MAPS = {
    "label": torch.int64,
    "keep": torch.bool,
    **dict.fromkeys(("log_sum", "loss", "error", "slope"), torch.float32),
}
# Sizes, addresses, and strides in entries. Of an image's pixels, each is the next entry in memory.
_FIELDS = (
    *("taken", "images", "classes", "pixels", "size"),  # size: of pixels that a thread takes
    # float32 or, if it is half, bfloat16
    *("x", "x_image", "x_class", "gradient", "gradient_image", "gradient_class", "is_half"),
    *(*MAPS, "map_image"),
    "is_broken",  # 1 once a loss, of an ignored pixel too, is not finite
)
JOB = np.dtype([(name, np.int64) for name in _FIELDS])


@compiled
def _widen(x: int, stride: int, classes: int, size: int, values: Any) -> None:
    for k in range(classes):
        row, place = halves(x + 2 * k * stride, size), values[k * size : (k + 1) * size]
        for p in range(size):
            place[p] = widened(row[p])


@compiled
def _narrow(values: Any, classes: int, size: int, gradient: int, stride: int) -> None:
    for k in range(classes):
        row, place = values[k * size : (k + 1) * size], halves(gradient + 2 * k * stride, size)
        for p in range(size):
            place[p] = narrowed(row[p])


@compiled
def _as_classes(label: Any, classes: int, out: Any) -> None:
    """Write labels as wide as the logits, so that vectors of both match; an ignored one becomes any class."""
    for p in range(out.size):
        out[p] = min(max(label[p], 0), classes - 1)


@compiled
def _logits(job: Any, image: int, first: int, size: int, values: Any) -> tuple[int, int]:
    """Return the address and the class stride of float32 logits: as they stand, or bfloat16's in ``values``."""
    if job.is_half:
        _widen(job.x + 2 * (image * job.x_image + first), job.x_class, job.classes, size, values)
        return np.int64(values.ctypes.data), size
    return job.x + 4 * (image * job.x_image + first), job.x_class


@compiled
def _gradient(job: Any, image: int, first: int, size: int, values: Any) -> tuple[int, int]:
    """Return the same of memory for their gradient."""
    if job.is_half:
        return np.int64(values.ctypes.data), size
    return job.gradient + 4 * (image * job.gradient_image + first), job.gradient_class


@compiled
def _largest(x: int, stride: int, classes: int, out: Any) -> None:
    for k in range(classes):
        row = floats(x + 4 * k * stride, out.size)
        for p in range(out.size):
            out[p] = row[p] if k == 0 or row[p] > out[p] else out[p]


@compiled
def _clear(values: Any) -> None:
    for p in range(values.size):
        values[p] = 0


@compiled
def _log_sum(x: int, stride: int, classes: int, highest: Any, out: Any) -> None:
    _clear(out)
    for k in range(classes):
        row = floats(x + 4 * k * stride, out.size)
        for p in range(out.size):
            out[p] += exp(row[p] - highest[p])
    for p in range(out.size):
        out[p] = logarithm(out[p])


@compiled
def _add_others(row: Any, highest: Any, label: Any, k: np.int32, others: Any) -> None:
    for p in range(row.size):
        power = exp(row[p] - highest[p])
        others[p] += power if label[p] != k else np.float32(0)


@compiled
def _add_others_and_squares(
    row: Any, highest: Any, label: Any, k: np.int32, others: Any, squares: Any
) -> None:
    for p in range(row.size):
        power = exp(row[p] - highest[p])
        other = power if label[p] != k else np.float32(0)
        others[p] += other
        squares[p] += other * other


@compiled
def _squared_error(more: Any, others: Any, squares: Any, keep: Any, out: Any) -> None:
    """‖p − e_y‖² = Σ p_k² + (1 − p_y)² = Σ p_k² + (Σ p_k)² over k ≠ y, which subtracts nothing."""
    for p in range(out.size):
        total = more[p] + np.float32(1)
        error = (squares[p] + others[p] * others[p]) / total / total
        out[p] = error if keep[p] else np.float32(0)


@compiled
def _own(x: int, stride: int, classes: int, label: Any, highest: Any, out: Any) -> None:
    values = floats(x, (classes - 1) * stride + out.size)
    for p in range(out.size):
        out[p] = values[label[p] * stride + p] - highest[p]


@compiled
def _more(own: Any, others: Any, out: Any) -> None:
    """Write Σ − 1: where the label's logit is the largest, what the others sum to, without rounding."""
    for p in range(out.size):
        out[p] = others[p] + (exp(own[p]) - np.float32(1))


@compiled
def _loss(more: Any, own: Any, keep: Any, log_sum: Any, loss: Any) -> bool:
    """Write log Σ and the loss where kept, and return whether any loss is not finite."""
    broken = 0
    for p in range(loss.size):
        log_sum[p] = log1p(more[p])
        value = log_sum[p] - own[p]
        broken += value - value != 0
        loss[p] = value if keep[p] else np.float32(0)
    return broken > 0


@compiled
def _slope_of_class(
    row: Any, highest: Any, log_sum: Any, label: Any, k: np.int32, slope: Any, out: Any
) -> None:
    for p in range(row.size):
        own = slope[p] if label[p] == k else np.float32(0)
        out[p] = exp(row[p] - highest[p] - log_sum[p]) * slope[p] - own


@compiled
def _kept_or_zero(values: Any, keep: Any, out: Any) -> None:
    for p in range(values.size):
        out[p] = values[p] if keep[p] else np.float32(0)


@task
def forward(memory: Any) -> None:
    """Write the loss, log Σ and, if asked, ‖p − e_y‖² of each pixel."""
    job = carray(memory, 1, JOB)[0]
    wide = job.classes * job.size if job.is_half else 0
    values = np.empty(wide, np.float32)
    buffers = np.empty((5, job.size), np.float32)
    labels = np.empty(job.size, np.int32)
    parts = (job.pixels + job.size - 1) // job.size
    part = take(memory)
    while part < job.images * parts:
        image, first = part // parts, part % parts * job.size
        size, offset = min(job.size, job.pixels - first), image * job.map_image + first
        highest, own, more = buffers[0][:size], buffers[1][:size], buffers[2][:size]
        others, squares = buffers[3][:size], buffers[4][:size]
        keep, label = flags(job.keep + offset, size), labels[:size]
        _as_classes(integers(job.label + 8 * offset, size), job.classes, label)
        x, stride = _logits(job, image, first, size, values)
        _largest(x, stride, job.classes, highest)
        _own(x, stride, job.classes, label, highest, own)
        _clear(others)
        if job.error:
            _clear(squares)
            for k in range(job.classes):
                row = floats(x + 4 * k * stride, size)
                _add_others_and_squares(row, highest, label, np.int32(k), others, squares)
        else:
            for k in range(job.classes):
                _add_others(floats(x + 4 * k * stride, size), highest, label, np.int32(k), others)
        _more(own, others, more)
        if job.error:
            _squared_error(more, others, squares, keep, floats(job.error + 4 * offset, size))
        log_sum, loss = floats(job.log_sum + 4 * offset, size), floats(job.loss + 4 * offset, size)
        if _loss(more, own, keep, log_sum, loss):
            job.is_broken = 1
        part = take(memory)


@task
def backward(memory: Any) -> None:
    """Write (softmax - onehot) · slope, 0 where not kept; log Σ is found again where it is not given."""
    job = carray(memory, 1, JOB)[0]
    # Two buffers, for a loop that writes where it reads is not done in vectors.
    wide = job.classes * job.size if job.is_half else 0
    values, slopes = np.empty(wide, np.float32), np.empty(wide, np.float32)
    buffers = np.empty((3, job.size), np.float32)
    labels = np.empty(job.size, np.int32)
    parts = (job.pixels + job.size - 1) // job.size
    part = take(memory)
    while part < job.images * parts:
        image, first = part // parts, part % parts * job.size
        size, offset = min(job.size, job.pixels - first), image * job.map_image + first
        highest, slope = buffers[0][:size], buffers[1][:size]
        keep, label = flags(job.keep + offset, size), labels[:size]
        _as_classes(integers(job.label + 8 * offset, size), job.classes, label)
        _kept_or_zero(floats(job.slope + 4 * offset, size), keep, slope)
        x, stride = _logits(job, image, first, size, values)
        gradient, gradient_stride = _gradient(job, image, first, size, slopes)
        _largest(x, stride, job.classes, highest)
        if job.log_sum:
            log_sum = floats(job.log_sum + 4 * offset, size)
        else:
            log_sum = buffers[2][:size]
            _log_sum(x, stride, job.classes, highest, log_sum)
        for k in range(job.classes):
            row, place = floats(x + 4 * k * stride, size), floats(gradient + 4 * k * gradient_stride, size)
            _slope_of_class(row, highest, log_sum, label, np.int32(k), slope, place)
            if job.is_broken:  # NaN · 0 is NaN
                _kept_or_zero(place, keep, place)
        if job.is_half:
            half = job.gradient + 2 * (image * job.gradient_image + first)
            _narrow(slopes, job.classes, size, half, job.gradient_class)
        part = take(memory)
