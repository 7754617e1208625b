r"""The pixel pass over logits that are enlarged to the target's size on the way: at that size they never exist.

(Bi-, tri-)linear interpolation takes its weights from whole numbers. Pixel i of an axis lies at

.. math:: s(i) = \frac{\max(a i + b, 0)}{u},

and is made of the logits at :math:`\lfloor s \rfloor`, whose share is :math:`1 - \{s\}`, and the next ones. Logits of
half precision, which are few, are copied to float32 first.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classbalance_losses.kernels import reference
from classbalance_losses.kernels.call import Labels, Logits, Resize
from classbalance_losses.kernels.cpu import pixel
from classbalance_losses.kernels.cpu import upsample_loops as loops
from classbalance_losses.kernels.cpu.memory import hand_over, hand_over_labels
from classbalance_losses.kernels.cpu.operators import define
from classbalance_losses.kernels.cpu.threads import run
from classbalance_losses.kernels.cpu.tiles import PITCH
from classbalance_losses.kernels.forms.cpu import fill, form_of, parameters
from classbalance_losses.kernels.forms.reference import CrossEntropy, Form
from classbalance_losses.kernels.plain import needs_reference

_PIXELS = PITCH  # to which a line is widened at once, at most, and their logits
_LOGITS = 1 << 15
_LINES = 8  # of a cell, at most, and the logits to which they are widened
_BLOCK = 1 << 16
_CELLS = 1 << 5  # that threads should have to share
_SHORT = 1 << 6  # pixels of a row: with fewer, a cell's lines cost more than they save
_PARTS = 64  # of the cells, whose sums are added up apart
_TABLES = 1 << 21  # sums in all of them: 16 MiB


def pixel_values(logits: Logits, labels: Labels, form: Form) -> Tensor:
    """Return φ of each pixel (N, *) in float32, 0 where its label is ignored, with the gradient of the logits."""
    resize = _on_the_way(logits)
    if resize is None:
        return pixel.pixel_values(_at_full_size(logits), labels, form)
    return _apply(logits.input, resize, labels, form, with_error=False)[0]


def cross_entropy_and_error(logits: Logits, labels: Labels) -> tuple[Tensor, Tensor]:
    r"""Return the cross-entropy, and the constant :math:`\lVert p_i - e_{y_i} \rVert^2` (N, *)."""
    resize = _on_the_way(logits)
    if resize is None:
        return pixel.cross_entropy_and_error(_at_full_size(logits), labels)
    return _apply(logits.input, resize, labels, CrossEntropy(), with_error=True)


def error_sums(logits: Logits, labels: Labels, weight: Tensor | None, *, squared: bool) -> Tensor:
    r"""Return :math:`\sum_{y_i = a} q_i \delta_{ib}`, or of :math:`\delta_{ib}^2` without q, (C, C), a constant."""
    resize = _on_the_way(logits)
    if resize is None:
        return pixel.error_sums(_at_full_size(logits), labels, weight, squared=squared)
    weight = None if squared else weight
    table: Tensor = _ERROR_SUMS(
        logits.input.detach(), labels.target, weight, labels.ignore_index, resize.align_corners, squared
    )
    return table


def _on_the_way(logits: Logits) -> Resize | None:
    """Return the resize if it is to happen in the loop: no axis shrinks, and rows of pixels are not short."""
    if logits.resize is None:
        return None
    sizes = zip(logits.input.shape[2:], logits.resize.size, strict=True)
    axes = [(low, full) for low, full in sizes if (low, full) != (1, 1)]
    is_larger = all(low <= full for low, full in axes) and any(low < full for low, full in axes)
    return logits.resize if is_larger and (len(axes) == 1 or axes[-1][1] >= _SHORT) else None


def _at_full_size(logits: Logits) -> Logits:
    return logits if logits.resize is None else Logits(logits.resize(logits.input.float()))


def _apply(
    input: Tensor, resize: Resize, labels: Labels, form: Form, *, with_error: bool
) -> tuple[Tensor, Tensor]:
    value, error = _Upsampled.apply(  # type: ignore[no-untyped-call]
        input, labels.target, labels.ignore_index, resize.align_corners, *parameters(form), with_error
    )
    return value, error


class _Upsampled(torch.autograd.Function):
    """What `pixel._PixelPass` is at the logits' own size."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        ignore_index: int,
        align_corners: bool,
        code: int,
        numbers: list[float],
        weight: Tensor | None,
        with_error: bool,
    ) -> tuple[Tensor, Tensor]:
        constants = (ignore_index, align_corners, code, numbers, weight)
        value, error, log_sum = _FORWARD(input, target, *constants, with_error)
        ctx.save_for_backward(input, target, weight, log_sum)
        ctx.constants = constants[:-1]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(error)
        return value, error

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 8
        input, target, weight, log_sum = ctx.saved_tensors
        ignore_index, align_corners, code, numbers = ctx.constants
        if needs_reference(grad):
            labels, form = Labels(target, input.shape[1], ignore_index), form_of(code, numbers, weight)
            resize = Resize(tuple(target.shape[1:]), align_corners)
            gradient = pixel.by_reference(
                lambda x: reference.pixel_values(Logits(x.float(), resize), labels, form), input, grad
            )
        else:
            gradient = _BACKWARD(grad, input, target, log_sum, *ctx.constants, weight)
        return (gradient, *(None,) * 7)


def _forward(
    input: Tensor,
    target: Tensor,
    ignore_index: int,
    align_corners: bool,
    code: int,
    numbers: Sequence[float],
    weight: Tensor | None,
    with_error: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    value, error, log_sum = maps = _maps(
        input, target, ignore_index, align_corners, code, numbers, weight, with_error
    )
    x, target = _single(input), target.contiguous()
    job = _job(x, target, ignore_index, align_corners)
    fill(job["form"], code, numbers, weight, input.shape[1])
    hand_over(job, loops.FIELDS, {"value": value, "log_sum": log_sum})
    if with_error:
        hand_over(job, loops.FIELDS, {"error": error})
    run(loops.pixel_pass, job)
    return maps


def _maps(
    input: Tensor,
    target: Tensor,
    ignore_index: int,
    align_corners: bool,
    code: int,
    numbers: Sequence[float],
    weight: Tensor | None,
    with_error: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Make φ, the error, which is empty if it is not asked for, and log Σ."""
    value, error, log_sum = (
        torch.empty(shape, dtype=torch.float32, device=input.device)
        for shape in (target.shape, target.shape if with_error else (0,), target.shape)
    )
    return value, error, log_sum


def _backward(
    grad: Tensor,
    input: Tensor,
    target: Tensor,
    log_sum: Tensor,
    ignore_index: int,
    align_corners: bool,
    code: int,
    numbers: Sequence[float],
    weight: Tensor | None,
) -> Tensor:
    x, target, grad = _single(input), target.contiguous(), grad.contiguous()
    gradient = torch.zeros_like(x)
    job = _job(x, target, ignore_index, align_corners)
    fill(job["form"], code, numbers, weight, input.shape[1])
    hand_over(job, loops.FIELDS, {"log_sum": log_sum, "slope": grad, "gradient": gradient})
    axes = [job[name] for name in loops.AXES]
    for turns in product(*(range(2 if axis["low"] > axis["group"] else 1) for axis in axes)):
        for axis, turn in zip(axes, turns, strict=True):
            axis["turn"], axis["apart"] = turn, 2
        job["taken"] = 0
        run(loops.pixel_pass, job)
    return gradient.to(input.dtype)


def _like_input(grad: Tensor, input: Tensor, *_: object) -> Tensor:
    return torch.empty_like(input, memory_format=torch.contiguous_format)


def _error_sums(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    align_corners: bool,
    squared: bool,
) -> Tensor:
    x, target, classes = _single(input), target.contiguous(), input.shape[1]
    job = _job(x, target, ignore_index, align_corners)
    # Parts, in the order of whose sums no thread has a say.
    job["parts"], job["squared"] = max(min(_PARTS, _TABLES // classes**2), 1), squared
    sums = torch.zeros(int(job["parts"][0]), classes, classes, dtype=torch.float64, device="cpu")
    hand_over(job, loops.FIELDS, {"sums": sums})
    if weight is not None:
        weight = weight.contiguous()
        hand_over(job, loops.FIELDS, {"slope": weight})
    run(loops.pixel_pass, job)
    return sums.sum(0).T.float().contiguous()


def _table(input: Tensor, *_: object) -> Tensor:
    return torch.empty(input.shape[1], input.shape[1], dtype=torch.float32, device=input.device)


def _single(input: Tensor) -> Tensor:
    return input.detach().float().contiguous()


def _job(x: Tensor, target: Tensor, ignore_index: int, align_corners: bool) -> Any:
    """Return the sizes and axes, and the addresses of float32 logits and of labels, which the caller keeps alive."""
    job = np.zeros(1, loops.JOB)
    job["images"], job["classes"] = x.shape[:2]
    job["sources"], job["pixels"] = x.numel(), target.numel()
    hand_over(job, loops.FIELDS, {"x": x})
    hand_over_labels(job, target, ignore_index, target.shape)
    sizes = [pair for pair in zip(x.shape[2:], target.shape[1:], strict=True) if pair != (1, 1)]
    for name, (low, full) in zip(loops.AXES, [(1, 1)] * (3 - len(sizes)) + sizes, strict=True):
        job[name] = _axis(low, full, align_corners)
    _cut(job)
    return job


def _axis(low: int, full: int, align_corners: bool) -> tuple[int, ...]:
    """Return an axis, in cells of one index."""
    if align_corners:
        return low, full, low - 1, 0, max(full - 1, 1), 1, 0, 1
    return low, full, 2 * low, low - full, 2 * full, 1, 0, 1


def _cut(job: Any) -> None:
    """Choose the cells: columns by what a tile holds, lines by what the cache does, beside it; threads have no say."""
    images, classes = int(job["images"][0]), int(job["classes"][0])
    (depth,), (height,) = job["deep"]["low"].tolist(), job["tall"]["low"].tolist()
    low, full, step, shift, unit = job["wide"][0].tolist()[:5]
    columns = max(min(_PIXELS, _LOGITS // classes, full), 1)
    group = low if full <= columns else max((columns * step + min(shift, 0)) // unit, 1)
    parts = -(-low // group)
    lines = min(_LINES, _BLOCK // (classes * columns) - 1, images * depth * height * parts // _CELLS, height)
    job["columns"], job["wide"]["group"], job["tall"]["group"] = columns, -(-low // parts), max(lines, 1)


_FORWARD = define(
    "cpu_upsampled_forward(Tensor input, Tensor target, int ignore_index, bool align_corners, int form, "
    "float[] numbers, Tensor? weight, bool with_error) -> (Tensor, Tensor, Tensor)",
    _forward,
    _maps,
)
_BACKWARD = define(
    "cpu_upsampled_backward(Tensor grad, Tensor input, Tensor target, Tensor log_sum, int ignore_index, "
    "bool align_corners, int form, float[] numbers, Tensor? weight) -> Tensor",
    _backward,
    _like_input,
)
_ERROR_SUMS = define(
    "cpu_upsampled_error_sums(Tensor input, Tensor target, Tensor? weight, int ignore_index, bool align_corners, "
    "bool squared) -> Tensor",
    _error_sums,
    _table,
)
