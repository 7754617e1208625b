"""Class sums of a form by the pixel pass itself: no map of values is written, and none of their slopes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classbalance_losses.kernels import reference
from classbalance_losses.kernels.call import ClassSums, Labels, Logits
from classbalance_losses.kernels.cpu import strided, upsample
from classbalance_losses.kernels.cpu.class_cells import COLUMNS, lanes_for
from classbalance_losses.kernels.cpu.memory import hand_over
from classbalance_losses.kernels.cpu.pixel import BACKWARD, PARTS, as_called, classes_of, prepared
from classbalance_losses.kernels.cpu.threads import run
from classbalance_losses.kernels.cpu.tiles import FIELDS
from classbalance_losses.kernels.forms.cpu import fill, form_of, parameters
from classbalance_losses.kernels.forms.reference import Form
from classbalance_losses.kernels.operators import by_reference, define
from classbalance_losses.kernels.plain import needs_reference


def pixel_sums(
    logits: Logits, labels: Labels, form: Form, weight: Tensor | None, *, with_error: bool = False
) -> ClassSums:
    r"""Return what `class_sums` makes of φ, and of :math:`\lVert p_i - e_{y_i} \rVert^2` if asked, of one row.

    Args:
        logits: Of any layout, with their gradient.
        labels: The pixels that count, and their classes.
        form: φ; the cross-entropy if the error is asked for.
        weight: q (N, *), float32 and constant, or ``None`` for 1.
        with_error: Whether to sum q² times the error, too, which is constant.
    """
    input, align_corners = upsample.taken(logits)
    constants = (labels.ignore_index, align_corners, *parameters(form), with_error)
    number, value, squared = _PixelSums.apply(  # type: ignore[no-untyped-call]
        input, labels.target, *constants, logits.bias, logits.single, weight
    )
    return ClassSums(number, value, squared if with_error else None)


class _PixelSums(torch.autograd.Function):
    """Class sums, of which those of φ have a gradient; its backward by the loops, or by the reference."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
        number, value, squared, log_sum = _FORWARD(input, target, *given)
        *constants, class_weight, _, bias, single, weight = given
        ctx.save_for_backward(input, target, class_weight, log_sum, bias, weight)
        ctx.constants, ctx.single = constants, single
        ctx.mark_non_differentiable(number, squared)
        return number, value, squared

    @staticmethod
    def backward(ctx: Any, _: Any, grad: Tensor, __: Any) -> tuple[Tensor | None, ...]:
        input, target, class_weight, log_sum, bias, weight = ctx.saved_tensors
        if needs_reference(grad):
            gradient = _by_reference(ctx, grad)
        else:
            others = (class_weight, bias, ctx.single, weight, None, grad.squeeze(0))
            gradient = BACKWARD(None, input, target, log_sum, *ctx.constants, *others)
        return (gradient, *(None,) * 10)


def _by_reference(ctx: Any, grad: Tensor) -> Tensor:
    input, _, class_weight, *_, weight = ctx.saved_tensors
    code, numbers = ctx.constants[2:]

    def outputs(input: Tensor) -> list[Tensor]:
        logits, labels = as_called(ctx, input)
        values = reference.pixel_values(logits, labels, form_of(code, numbers, class_weight))
        sums = reference.class_sums(labels, values, None, weight).value
        assert sums is not None
        return [sums]

    return by_reference(outputs, input, [grad])


def _forward(
    input: Tensor,
    target: Tensor,
    ignore_index: int,
    align_corners: bool | None,
    code: int,
    numbers: Sequence[float],
    class_weight: Tensor | None,
    with_error: bool,
    bias: Tensor | None,
    single: bool,
    weight: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    log_sum = _log_sum(input, target, align_corners, single)
    tensors = {"bias": bias, "pixel_weight": weight, "log_sum": log_sum if log_sum.numel() else None}
    _kept, task, job = prepared(input, target, ignore_index, align_corners, single, tensors)
    classes = int(job["classes"][0])
    # Parts, in the order of whose sums no thread has a say.
    job["parts"] = parts = min(int(job["parts"][0]), PARTS)
    job["lanes"], job["cells"] = lanes, cells = (
        lanes_for(target.numel() // max(parts, 1), classes),
        classes + 1,
    )
    job["with_error"] = with_error
    table = np.zeros((parts, lanes, cells, COLUMNS))
    hand_over(job, FIELDS, {"class_sums": torch.from_numpy(table)})
    fill(job["form"], code, numbers, class_weight, classes)
    run(task, job)
    with np.errstate(invalid="ignore"):  # inf - inf
        number, _, value, squared = torch.from_numpy(table[:, :, 1:].sum((0, 1))).unbind(-1)
    sums = (of.unsqueeze(0) for of in (number.to(torch.int64), value.float(), squared.float()))
    return *sums, log_sum  # type: ignore[return-value]


def _outputs(
    input: Tensor, target: Tensor, ignore_index: int, align_corners: bool | None, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    single = others[-2]
    shape = (1, classes_of(input, single))
    number = torch.empty(shape, dtype=torch.int64, device=input.device)
    value, squared = (torch.empty(shape, dtype=torch.float32, device=input.device) for _ in range(2))
    return number, value, squared, _log_sum(input, target, align_corners, single)


def _log_sum(input: Tensor, target: Tensor, align_corners: bool | None, single: bool) -> Tensor:
    """Make log Σ of each pixel, empty if it is not kept."""
    is_enlarged = align_corners is not None
    is_kept = strided.keeps_log_sum(input, classes_of(input, single), is_enlarged=is_enlarged)
    return torch.empty(target.shape if is_kept else (0,), dtype=torch.float32, device=input.device)


_FORWARD = define(
    "cpu_pixel_sums(Tensor input, Tensor target, int ignore_index, bool? align_corners, int form, "
    "float[] numbers, Tensor? class_weight, bool with_error, Tensor? bias, bool single, Tensor? weight) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _outputs,
)
