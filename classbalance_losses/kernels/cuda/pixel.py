r"""A form of each pixel on CUDA, in one pass over the logits each way.

A thread takes a few neighbouring pixels and all their classes, four at a time, by an online softmax: nothing crosses
threads, so there is neither shared memory nor a barrier.

- Forward reads each logit once and writes φ and, if asked, :math:`\lVert p - e_y \rVert^2`. For backward it keeps max
  and :math:`\log \sum_k e^{x_k - \max}`, two numbers a pixel: their sum, at logits of 10⁴, would be off by 5·10⁻⁴, and
  every probability with it. A third one is the slope :math:`d\varphi / d\ell`, where that is not 1.
- Backward reads each logit once and writes :math:`(p_k - [k = y])\, g` once, in the dtype and layout of the logits.

A form of all probabilities is found in a second round over a pixel's logits, which are in the cache by then; its
backward goes over them twice as well.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from classbalance_losses.kernels import reference
from classbalance_losses.kernels.call import Labels, Logits
from classbalance_losses.kernels.cuda import pixel_kernels as kernels
from classbalance_losses.kernels.cuda.common import (
    Layout,
    all_fit,
    by_torch,
    check_fit,
    define,
    launch,
    pixel_layout,
    reference_gradient,
)
from classbalance_losses.kernels.forms.cuda import OF_LOSS, Code, code
from classbalance_losses.kernels.forms.reference import Form

_UNROLLED = 32  # classes of one round: a multiple of 4
_THREADS = 128  # of a program: four warps, as Triton has it
_GROUPS = 128  # of logits, of a program, where a pixel's logits are neighbours: one a thread


class PixelPass(torch.autograd.Function):
    """φ (N, *) and, if asked, the constant ‖p − e_y‖²."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, target: Tensor, ignore_index: int, form: Form, with_error: bool
    ) -> tuple[Tensor, ...]:
        how = code(form, input.shape[1])
        value, norm, *error = torch.ops.classbalance_losses.pixel_forward(
            input, target, how.weight, ignore_index, how.kind, how.numbers, with_error
        )
        ctx.ignore_index, ctx.form, ctx.how = ignore_index, form, how
        ctx.mark_non_differentiable(*error)
        ctx.set_materialize_grads(False)  # they would be zeros as large as the maps
        ctx.save_for_backward(input, target, norm)
        return value, *error

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 5
        input, target, norm = ctx.saved_tensors
        if by_torch(grad):
            labels = Labels(target, input.shape[1], ctx.ignore_index)
            gradient = reference_gradient(
                lambda x: (reference.pixel_values(Logits(x), labels, ctx.form),), input, (grad,)
            )
        else:
            how: Code = ctx.how
            gradient = torch.ops.classbalance_losses.pixel_backward(
                grad, input, target, how.weight, norm, ctx.ignore_index, how.kind, how.numbers
            )
        return gradient, None, None, None, None


def _forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    kind: str,
    numbers: tuple[float, ...],
    with_error: bool,
) -> list[Tensor]:
    layout = pixel_layout(input.shape, input.stride())
    if layout is None:
        return _forward(input.contiguous(), target, weight, ignore_index, kind, numbers, with_error)
    value, norm, *error = outputs = _outputs(input, target, weight, ignore_index, kind, numbers, with_error)
    fits = all_fit(input.device)
    blocks = triton.cdiv(layout.inner, _together(layout) * _THREADS)
    launch(
        kernels.forward,
        layout.outer * blocks if target.numel() else 0,
        (input, target.contiguous(), weight, value, error[0] if error else None, norm, fits),
        (*_numbers(layout, blocks, ignore_index), input.stride(1), *layout.strides[0], *numbers),
        _constants(layout, kind, input.shape[1]),
    )
    check_fit(fits, input.shape[1])
    return outputs


def _outputs(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    kind: str,
    numbers: tuple[float, ...],
    with_error: bool,
) -> list[Tensor]:
    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=input.device)

    planes = 3 if kind in OF_LOSS[1:] else 2
    outputs = [new(*target.shape), new(planes, *target.shape)]
    return [*outputs, new(*target.shape)] if with_error else outputs


def _backward(
    grad: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    norm: Tensor,
    ignore_index: int,
    kind: str,
    numbers: tuple[float, ...],
) -> Tensor:
    output = torch.empty_like(input)
    layout = pixel_layout(input.shape, input.stride(), output.stride())
    if layout is None:
        dense = input.contiguous()
        return output.copy_(_backward(grad, dense, target, weight, norm, ignore_index, kind, numbers))
    num_classes = input.shape[1]
    target, grad = target.contiguous(), grad.contiguous()
    rows = (0, 0, num_classes)
    if (
        input.stride(1) == output.stride(1) == layout.outer == 1
        and layout.strides == (rows, rows)
        and kind in OF_LOSS
        and num_classes >= 4
    ):
        each = min(triton.next_power_of_2(num_classes + 1) // 2, 16)
        launch(
            kernels.backward_of_rows,
            triton.cdiv(input.numel(), each * _GROUPS),
            (grad, input, target, norm, output),
            (target.numel(), ignore_index),
            (kind, num_classes, each, _GROUPS),
            )
        return output
    blocks = triton.cdiv(layout.inner, _together(layout) * _THREADS)
    strides = (input.stride(1), *layout.strides[0], output.stride(1), *layout.strides[1])
    launch(
        kernels.backward,
        layout.outer * blocks if target.numel() else 0,
        (grad, input, target, weight, norm, output),
        (*_numbers(layout, blocks, ignore_index), *strides, *numbers),
        _constants(layout, kind, num_classes),
    )
    return output


def _numbers(layout: Layout, blocks: int, ignore_index: int) -> tuple[int, ...]:
    return layout.outer, layout.inner, blocks, ignore_index, layout.row


def _constants(layout: Layout, kind: str, num_classes: int) -> tuple[Any, ...]:
    together = _together(layout)
    return (
        layout.row < layout.inner,
        kind,
        kind not in OF_LOSS,
        num_classes,
        _UNROLLED,
        together,
        together * _THREADS,
    )


def _together(layout: Layout) -> int:
    """Return how many pixels a thread takes: of neighbours, 16 bytes."""
    return 4 if layout.strides[0][-1] == 1 else 1


_FORM = "int ignore_index, str kind, float[] numbers"
define(
    f"pixel_forward(Tensor input, Tensor target, Tensor? weight, {_FORM}, bool with_error) -> Tensor[]",
    _forward,
    _outputs,
)
define(
    f"pixel_backward(Tensor grad, Tensor input, Tensor target, Tensor? weight, Tensor norm, {_FORM}) -> Tensor",
    _backward,
    lambda grad, input, *_: torch.empty_like(input),
)
