r"""Cross-entropy of each pixel on CUDA, in one pass over the logits each way.

A thread takes a few neighbouring pixels and all their classes, four at a time, by an online softmax: nothing crosses
threads, so there is neither shared memory nor a barrier.

- Forward reads each logit once and writes :math:`\ell = \log \sum_k e^{x_k} - x_y` and, if asked,
  :math:`\lVert p - e_y \rVert^2`. For backward it keeps max and :math:`\log \sum_k e^{x_k - \max}`, two numbers a
  pixel: their sum, at logits of 10⁴, would be off by 5·10⁻⁴, and every probability with it.
- Backward reads each logit once and writes :math:`(p_k - [k = y])\, g` once, in the dtype and layout of the logits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from classbalance_losses.kernels.triton_common import (
    LOG2E,
    LOWEST,
    OPTIONS,
    Layout,
    add_classes,
    by_torch,
    bytes_of,
    exp2,
    finish,
    offsets,
    on_device_of,
    pixel_layout,
    place,
    unsupported,
)
from classbalance_losses.kernels.triton_library import define

__all__ = ["cross_entropy", "cross_entropy_and_error", "unsupported"]

_UNROLLED = 32  # classes of one round: a multiple of 4
_WARPS = 4
_ROW_LOGITS = 1024  # of a program, where a pixel's logits are neighbours


def cross_entropy(input: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    r"""Return :math:`\ell_i = -\log p_{i, y_i}` (N, *) in float32, 0 where not kept.

    ``input`` (N, C, *) in float16, bfloat16 or float32 and of any strides, ``target`` (N, *) of any integer type,
    ``keep`` (N, *) of bool. Kept targets are in [0, C).
    """
    loss: Tensor = _CrossEntropy.apply(input, target, keep, False)[0]  # type: ignore[no-untyped-call]
    return loss


def cross_entropy_and_error(input: Tensor, target: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the cross-entropy and, without a gradient, :math:`\lVert p_i - e_{y_i} \rVert^2`, both (N, *)."""
    loss, error = _CrossEntropy.apply(input, target, keep, True)  # type: ignore[no-untyped-call]
    return loss, error


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, target: Tensor, keep: Tensor, with_error: bool
    ) -> tuple[Tensor, Tensor]:
        loss, error, norm = torch.ops.classbalance_losses.pixel_forward(input, target, keep, with_error)
        ctx.mark_non_differentiable(error)
        ctx.set_materialize_grads(False)  # they would be zeros as large as the maps
        ctx.save_for_backward(input, target, keep, norm)
        return loss, error

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None
        input, target, keep, norm = ctx.saved_tensors
        if by_torch(grad):
            return _differentiable(grad, input, target, keep), None, None, None
        gradient: Tensor = torch.ops.classbalance_losses.pixel_backward(grad, input, target, keep, norm)
        return gradient, None, None, None


def _forward(input: Tensor, target: Tensor, keep: Tensor, with_error: bool) -> tuple[Tensor, Tensor, Tensor]:
    layout = pixel_layout(input)
    if layout is None:
        outputs: tuple[Tensor, Tensor, Tensor] = _forward(input.contiguous(), target, keep, with_error)
        return outputs
    loss, error, norm = _outputs(input, target, keep, with_error)
    if not target.numel():
        return loss, error, norm
    block = _block(input, layout)
    blocks = layout.blocks(block)
    with on_device_of(input):
        _forward_kernel[(layout.outer * blocks,)](
            input,
            target.contiguous(),
            bytes_of(keep),
            loss,
            error,
            norm,
            layout.outer,
            layout.inner,
            blocks,
            *layout.sizes,
            input.stride(1),
            *layout.strides[0],
            dims=layout.dims,
            with_error=with_error,
            num_classes=input.shape[1],
            unrolled=_UNROLLED,
            block=block,
            num_warps=_WARPS,
            **OPTIONS,
        )
    return loss, error, norm


def _outputs(input: Tensor, target: Tensor, keep: Tensor, with_error: bool) -> tuple[Tensor, Tensor, Tensor]:
    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=input.device)

    return new(*target.shape), new(*target.shape) if with_error else new(0), new(2, *target.shape)


def _backward(grad: Tensor, input: Tensor, target: Tensor, keep: Tensor, norm: Tensor) -> Tensor:
    output = torch.empty_like(input)
    if not output.numel():
        return output
    layout = pixel_layout(input, output)
    if layout is None:
        return output.copy_(_backward(grad, input.contiguous(), target, keep, norm))
    rows = (0, 0, 0, input.shape[1])
    if input.stride(1) == output.stride(1) == layout.outer == 1 and layout.strides == (rows, rows):
        _rows_backward(grad, input, target, keep, norm, output)
        return output
    block = _block(input, layout)
    blocks = layout.blocks(block)
    with on_device_of(input):
        _backward_kernel[(layout.outer * blocks,)](
            grad.contiguous(),
            input,
            target.contiguous(),
            bytes_of(keep),
            norm,
            output,
            layout.outer,
            layout.inner,
            blocks,
            *layout.sizes,
            input.stride(1),
            *layout.strides[0],
            output.stride(1),
            *layout.strides[1],
            dims=layout.dims,
            num_classes=input.shape[1],
            unrolled=_UNROLLED,
            block=block,
            num_warps=_WARPS,
            **OPTIONS,
        )
    return output


def _rows_backward(
    grad: Tensor, input: Tensor, target: Tensor, keep: Tensor, norm: Tensor, output: Tensor
) -> None:
    """Write the gradient where a pixel's logits are neighbours and nothing lies between pixels."""
    with on_device_of(input):
        _rows_backward_kernel[(triton.cdiv(input.numel(), _ROW_LOGITS),)](
            grad.contiguous(),
            input,
            target.contiguous(),
            bytes_of(keep),
            norm,
            output,
            target.numel(),
            num_classes=input.shape[1],
            block=_ROW_LOGITS,
            num_warps=_WARPS,
            **OPTIONS,
        )


def _like_input(grad: Tensor, input: Tensor, *_: object) -> Tensor:
    return torch.empty_like(input)


define(
    "pixel_forward(Tensor input, Tensor target, Tensor keep, bool with_error) -> (Tensor, Tensor, Tensor)",
    _forward,
    _outputs,
)
define(
    "pixel_backward(Tensor grad, Tensor input, Tensor target, Tensor keep, Tensor norm) -> Tensor",
    _backward,
    _like_input,
)


def _differentiable(grad: Tensor, input: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    kept = keep.unsqueeze(1)
    probability = F.softmax(torch.where(kept, input, 0), dim=1, dtype=torch.float32)
    classes = torch.arange(input.shape[1], dtype=torch.int64, device=input.device).view(
        -1, *[1] * (input.ndim - 2)
    )
    error = probability - (classes == target.unsqueeze(1)).float()
    return torch.where(kept, error * torch.where(keep, grad, 0).unsqueeze(1), 0).to(input.dtype)


def _block(input: Tensor, layout: Layout) -> int:
    """Return how many pixels a program takes: of neighbours, a thread takes 16 bytes."""
    together = 4 if layout.strides[0][-1] == 1 else 1
    return together * 32 * _WARPS


@triton.jit(do_not_specialize=["outer_count", "blocks", "size1"])
def _forward_kernel(
    input_ptr: tl.tensor,
    target_ptr: tl.tensor,
    keep_ptr: tl.tensor,
    loss_ptr: tl.tensor,
    error_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    outer_count: tl.tensor,
    inner_count: tl.tensor,
    blocks: tl.tensor,
    size1: tl.tensor,
    size2: tl.tensor,
    stride_c: tl.tensor,
    stride_outer: tl.tensor,
    stride0: tl.tensor,
    stride1: tl.tensor,
    stride2: tl.tensor,
    dims: tl.constexpr,
    with_error: tl.constexpr,
    num_classes: tl.constexpr,
    unrolled: tl.constexpr,
    block: tl.constexpr,
) -> None:
    outer, inner, inside = place(inner_count, blocks, block)
    pixel = outer * inner_count + inner
    kept = tl.load(keep_ptr + pixel, mask=inside, other=0) != 0
    target = tl.load(target_ptr + pixel, mask=inside, other=0).to(tl.int32)
    # Whatever a dropped pixel's target is, and one that is about to be refused: its logit is to be read.
    target = tl.minimum(tl.maximum(target, 0), num_classes - 1)
    logits = input_ptr + outer * stride_outer + offsets(inner, size1, size2, stride0, stride1, stride2, dims)
    step = tl.cast(stride_c, tl.int64)
    own = tl.load(logits + target * step, mask=inside, other=0.0).to(tl.float32)

    top = tl.full((block,), LOWEST, tl.float32)
    others = tl.zeros((block,), tl.float32)
    squares = tl.zeros((block,), tl.float32)
    left: tl.constexpr = num_classes % unrolled
    for start in range(0, num_classes - left, unrolled):
        for first in tl.static_range(0, unrolled, 4):
            k = start + first
            x0, x1, x2, x3 = _load(logits + k * step, 4, step, inside)
            top, others, squares = add_classes(
                x0, x1, x2, x3, 4, target - k, top, others, squares, with_error
            )
    for k in tl.static_range(num_classes - left, num_classes, 4):
        x0, x1, x2, x3 = _load(logits + k * step, num_classes - k, step, inside)
        top, others, squares = add_classes(
            x0, x1, x2, x3, num_classes - k, target - k, top, others, squares, with_error
        )

    loss, error, log_total = finish(top, others, squares, own)
    tl.store(loss_ptr + pixel, tl.where(kept, loss, 0.0), mask=inside)
    if with_error:
        tl.store(error_ptr + pixel, tl.where(kept, error, 0.0), mask=inside)
    tl.store(norm_ptr + pixel, top, mask=inside)
    tl.store(norm_ptr + outer_count * inner_count + pixel, log_total, mask=inside)


@triton.jit
def _load(logits: tl.tensor, number: tl.constexpr, step: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """Return the logits of up to four of ``number`` classes. A mask from memory would forbid wide loads."""
    x0 = tl.load(logits, mask=inside, other=0.0).to(tl.float32)
    x1 = x0
    x2 = x0
    x3 = x0
    if number > 1:
        x1 = tl.load(logits + step, mask=inside, other=0.0).to(tl.float32)
    if number > 2:
        x2 = tl.load(logits + 2 * step, mask=inside, other=0.0).to(tl.float32)
    if number > 3:
        x3 = tl.load(logits + 3 * step, mask=inside, other=0.0).to(tl.float32)
    return x0, x1, x2, x3


@triton.jit(do_not_specialize=["outer_count", "blocks", "size1"])
def _backward_kernel(
    grad_ptr: tl.tensor,
    input_ptr: tl.tensor,
    target_ptr: tl.tensor,
    keep_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    output_ptr: tl.tensor,
    outer_count: tl.tensor,
    inner_count: tl.tensor,
    blocks: tl.tensor,
    size1: tl.tensor,
    size2: tl.tensor,
    stride_c: tl.tensor,
    stride_outer: tl.tensor,
    stride0: tl.tensor,
    stride1: tl.tensor,
    stride2: tl.tensor,
    out_stride_c: tl.tensor,
    out_stride_outer: tl.tensor,
    out_stride0: tl.tensor,
    out_stride1: tl.tensor,
    out_stride2: tl.tensor,
    dims: tl.constexpr,
    num_classes: tl.constexpr,
    unrolled: tl.constexpr,
    block: tl.constexpr,
) -> None:
    outer, inner, inside = place(inner_count, blocks, block)
    pixel = outer * inner_count + inner
    kept = tl.load(keep_ptr + pixel, mask=inside, other=0) != 0
    target = tl.load(target_ptr + pixel, mask=inside, other=0).to(tl.int32)
    grad = tl.load(grad_ptr + pixel, mask=inside, other=0.0).to(tl.float32)
    top = tl.load(norm_ptr + pixel, mask=inside, other=0.0)
    log_total = tl.load(norm_ptr + outer_count * inner_count + pixel, mask=inside, other=0.0)
    logits = input_ptr + outer * stride_outer + offsets(inner, size1, size2, stride0, stride1, stride2, dims)
    output = output_ptr + outer * out_stride_outer
    output += offsets(inner, size1, size2, out_stride0, out_stride1, out_stride2, dims)
    step = tl.cast(stride_c, tl.int64)
    out_step = tl.cast(out_stride_c, tl.int64)

    left: tl.constexpr = num_classes % unrolled
    for start in range(0, num_classes - left, unrolled):
        for first in tl.static_range(0, unrolled, 4):
            k = start + first
            x0, x1, x2, x3 = _load(logits + k * step, 4, step, inside)
            to = output + k * out_step
            _write(x0, x1, x2, x3, 4, to, out_step, inside, kept, target - k, grad, top, log_total)
    for k in tl.static_range(num_classes - left, num_classes, 4):
        x0, x1, x2, x3 = _load(logits + k * step, num_classes - k, step, inside)
        to = output + k * out_step
        _write(x0, x1, x2, x3, num_classes - k, to, out_step, inside, kept, target - k, grad, top, log_total)


@triton.jit
def _write(
    x0: tl.tensor,
    x1: tl.tensor,
    x2: tl.tensor,
    x3: tl.tensor,
    number: tl.constexpr,
    output: tl.tensor,
    step: tl.tensor,
    inside: tl.tensor,
    kept: tl.tensor,
    target: tl.tensor,
    grad: tl.tensor,
    top: tl.tensor,
    log_total: tl.tensor,
) -> None:
    """Write the gradient by the logits of up to four of ``number`` classes."""
    dtype = output.dtype.element_ty
    d0 = _delta(x0, target == 0, kept, grad, top, log_total)
    tl.store(output, d0.to(dtype), mask=inside)
    if number > 1:
        d1 = _delta(x1, target == 1, kept, grad, top, log_total)
        tl.store(output + step, d1.to(dtype), mask=inside)
    if number > 2:
        d2 = _delta(x2, target == 2, kept, grad, top, log_total)
        tl.store(output + 2 * step, d2.to(dtype), mask=inside)
    if number > 3:
        d3 = _delta(x3, target == 3, kept, grad, top, log_total)
        tl.store(output + 3 * step, d3.to(dtype), mask=inside)


@triton.jit
def _delta(
    x: tl.tensor, own: tl.tensor, kept: tl.tensor, grad: tl.tensor, top: tl.tensor, log_total: tl.tensor
) -> tl.tensor:
    """Return (p − [own]) · grad, selected where kept: elsewhere it may be NaN."""
    p = exp2((x - top) * LOG2E - log_total * LOG2E)
    return tl.where(kept, p * grad - tl.where(own, grad, 0.0), 0.0)


@triton.jit
def _rows_backward_kernel(
    grad_ptr: tl.tensor,
    input_ptr: tl.tensor,
    target_ptr: tl.tensor,
    keep_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    output_ptr: tl.tensor,
    num_pixels: tl.tensor,
    num_classes: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Go over the logits as they lie, so that stores are wide; what belongs to a pixel comes from the cache."""
    start = tl.program_id(0).to(tl.int64) * block
    first = start // num_classes
    lane = tl.arange(0, block)
    logit = (start - first * num_classes).to(tl.int32) + lane
    inside = start + lane < num_pixels * tl.cast(num_classes, tl.int64)
    # Beyond the end it is the last pixel's: a bound costs less than a mask and what masked loads give.
    row = tl.minimum(logit // num_classes, (num_pixels - 1 - first).to(tl.int32))
    kept = tl.load(keep_ptr + first + row) != 0
    own = tl.load(target_ptr + first + row).to(tl.int32) == logit - row * num_classes
    grad = tl.load(grad_ptr + first + row).to(tl.float32)
    top = tl.load(norm_ptr + first + row)
    log_total = tl.load(norm_ptr + num_pixels + first + row)
    x = tl.load(input_ptr + start + lane, mask=inside, other=0.0).to(tl.float32)
    delta = _delta(x, own, kept, grad, top, log_total)
    tl.store(output_ptr + start + lane, delta.to(output_ptr.dtype.element_ty), mask=inside)
