r"""Cross-entropy of each pixel on CUDA, in one pass over the logits each way.

A program takes a block of pixels and all their classes, as tiles (classes, pixels) in which neighbouring pixels
are neighbours in memory. Up to ``_ONE_TILE`` classes are one tile; more are taken in tiles, by an online softmax.

- Forward reads each logit once and writes :math:`\ell = \log \sum_k e^{x_k} - x_y` and, if asked,
  :math:`\lVert p - e_y \rVert^2`.
- Backward reads each logit once and writes :math:`(p_k - [k = y])\, g` once, in the dtype and layout of the logits.
  Where the classes are one tile it finds their log-sum-exp again, for less than reading it would cost;
  else forward has saved it.

A log-sum-exp is kept as two numbers, max and :math:`\log \sum_k e^{x_k - \max}`: their sum, at logits of 10⁴, would be
off by 5·10⁻⁴, and every probability with it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from classbalance_losses.kernels.triton_common import (
    OPTIONS,
    add_classes,
    bytes_of,
    finish,
    offsets,
    on_device_of,
    pixel_layout,
    place,
    unsupported,
)

__all__ = ["cross_entropy", "cross_entropy_and_error", "unsupported"]

_ONE_TILE = 256
_MANY_TILES = 64
_ELEMENTS = 4096  # of a tile: 32 registers a thread, in 4 warps


def cross_entropy(input: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    r"""Return :math:`\ell_i = -\log p_{i, y_i}` (N, *) in float32, 0 where not kept.

    ``input`` (N, C, *) in float16, bfloat16 or float32 and of any strides, ``target`` (N, *) of any integer type,
    ``keep`` (N, *) of bool. Kept targets are in [0, C).
    """
    loss: Tensor = _forward(input, target, keep, False)[0]
    return loss


def cross_entropy_and_error(input: Tensor, target: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the cross-entropy and, without a gradient, :math:`\lVert p_i - e_{y_i} \rVert^2`, both (N, *)."""
    loss, error, _ = _forward(input, target, keep, True)
    return loss, error


# custom_op rather than triton_op: the latter takes no interpreted kernel, and these are tested as interpreted ones.
@torch.library.custom_op(
    "classbalance_losses::pixel_forward",
    mutates_args=(),
    schema="(Tensor input, Tensor target, Tensor keep, bool with_error) -> (Tensor, Tensor, Tensor)",
)
def _forward(input: Tensor, target: Tensor, keep: Tensor, with_error: bool) -> tuple[Tensor, Tensor, Tensor]:
    layout = pixel_layout(input)
    if layout is None:
        outputs: tuple[Tensor, Tensor, Tensor] = _forward(input.contiguous(), target, keep, with_error)
        return outputs
    loss, error, norm = _outputs(input, target, keep, with_error)
    if not target.numel():
        return loss, error, norm
    block_c, block_p, warps = _tile(input.shape[1])
    blocks = layout.blocks(block_p)
    with on_device_of(input):
        _forward_kernel[(layout.outer * blocks,)](
            input,
            target.contiguous(),
            bytes_of(keep),
            loss,
            error,
            norm,
            input.shape[1],
            layout.outer * layout.inner,
            layout.inner,
            blocks,
            *layout.sizes,
            input.stride(1),
            *layout.strides[0],
            dims=layout.dims,
            with_error=with_error,
            one_tile=not norm.numel(),
            block_c=block_c,
            block_p=block_p,
            num_warps=warps,
            **OPTIONS,
        )
    return loss, error, norm


@_forward.register_fake
def _outputs(input: Tensor, target: Tensor, keep: Tensor, with_error: bool) -> tuple[Tensor, Tensor, Tensor]:
    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=input.device)

    norm = new(0) if input.shape[1] <= _ONE_TILE else new(2, *target.shape)
    return new(*target.shape), new(*target.shape) if with_error else new(0), norm


@torch.library.custom_op(
    "classbalance_losses::pixel_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor input, Tensor target, Tensor keep, Tensor norm) -> Tensor",
)
def _backward(grad: Tensor, input: Tensor, target: Tensor, keep: Tensor, norm: Tensor) -> Tensor:
    output = torch.empty_like(input)
    if not output.numel():
        return output
    layout = pixel_layout(input, output)
    if layout is None:
        return output.copy_(_backward(grad, input.contiguous(), target, keep, norm))
    block_c, block_p, warps = _tile(input.shape[1])
    blocks = layout.blocks(block_p)
    with on_device_of(input):
        _backward_kernel[(layout.outer * blocks,)](
            grad.contiguous(),
            input,
            target.contiguous(),
            bytes_of(keep),
            norm,
            output,
            input.shape[1],
            layout.outer * layout.inner,
            layout.inner,
            blocks,
            *layout.sizes,
            input.stride(1),
            *layout.strides[0],
            output.stride(1),
            *layout.strides[1],
            dims=layout.dims,
            one_tile=not norm.numel(),
            block_c=block_c,
            block_p=block_p,
            num_warps=warps,
            **OPTIONS,
        )
    return output


@_backward.register_fake
def _(grad: Tensor, input: Tensor, target: Tensor, keep: Tensor, norm: Tensor) -> Tensor:
    return torch.empty_like(input)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    input, target, keep, _ = inputs
    _, error, norm = output
    ctx.mark_non_differentiable(error, norm)
    ctx.save_for_backward(input, target, keep, norm)


def _gradient(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    input, target, keep, norm = ctx.saved_tensors
    if (
        torch.is_grad_enabled()
    ):  # somebody will differentiate the gradient: it has to be made of torch's operations
        return _differentiable(grad, input, target, keep), None, None, None
    return _backward(grad, input, target, keep, norm), None, None, None


_forward.register_autograd(_gradient, setup_context=_save)


def _differentiable(grad: Tensor, input: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    kept = keep.unsqueeze(1)
    probability = F.softmax(torch.where(kept, input, 0), dim=1, dtype=torch.float32)
    classes = torch.arange(input.shape[1], dtype=torch.int64, device=input.device).view(
        -1, *[1] * (input.ndim - 2)
    )
    error = probability - (classes == target.unsqueeze(1)).float()
    return torch.where(kept, error * torch.where(keep, grad, 0).unsqueeze(1), 0).to(input.dtype)


def _tile(num_classes: int) -> tuple[int, int, int]:
    """Return how many classes and pixels a tile has, and the warps that share it."""
    block_c = _MANY_TILES if num_classes > _ONE_TILE else triton.next_power_of_2(num_classes)
    block_p = min(max(_ELEMENTS // block_c, 32), 1024)
    return block_c, block_p, 8 if block_c * block_p > _ELEMENTS else 4


@triton.jit
def _forward_kernel(
    input_ptr: tl.tensor,
    target_ptr: tl.tensor,
    keep_ptr: tl.tensor,
    loss_ptr: tl.tensor,
    error_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    num_classes: tl.tensor,
    num_pixels: tl.tensor,
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
    one_tile: tl.constexpr,
    block_c: tl.constexpr,
    block_p: tl.constexpr,
) -> None:
    outer, inner, inside = place(inner_count, blocks, block_p)
    pixel = outer * inner_count + inner
    kept = tl.load(keep_ptr + pixel, mask=inside, other=0) != 0
    target = tl.where(kept, tl.load(target_ptr + pixel, mask=inside, other=0).to(tl.int32), -1)
    logits = input_ptr + outer * stride_outer + offsets(inner, size1, size2, stride0, stride1, stride2, dims)

    top = tl.full((block_p,), float("-inf"), tl.float32)
    others = tl.zeros((block_p,), tl.float32)
    squares = tl.zeros((block_p,), tl.float32)
    own_logit = tl.zeros((block_p,), tl.float32)
    for start in range(0, num_classes, block_c):
        classes = start + tl.arange(0, block_c)[:, None]
        exists = classes < num_classes
        # The mask asks for existence alone: one that came from memory would forbid wide loads.
        x = tl.load(
            logits[None, :] + classes.to(tl.int64) * stride_c, mask=exists & inside[None, :], other=0.0
        )
        x = tl.where(kept[None, :], x.to(tl.float32), 0.0)
        own = classes == target[None, :]
        top, others, squares, own_logit = add_classes(
            x, own, exists, top, others, squares, own_logit, with_error
        )

    loss, error, log_total = finish(top, others, squares, own_logit)
    tl.store(loss_ptr + pixel, tl.where(kept, loss, 0.0), mask=inside)
    if with_error:
        tl.store(error_ptr + pixel, tl.where(kept, error, 0.0), mask=inside)
    if not one_tile:
        tl.store(norm_ptr + pixel, top, mask=inside)
        tl.store(norm_ptr + num_pixels + pixel, log_total, mask=inside)


@triton.jit
def _backward_kernel(
    grad_ptr: tl.tensor,
    input_ptr: tl.tensor,
    target_ptr: tl.tensor,
    keep_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    output_ptr: tl.tensor,
    num_classes: tl.tensor,
    num_pixels: tl.tensor,
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
    one_tile: tl.constexpr,
    block_c: tl.constexpr,
    block_p: tl.constexpr,
) -> None:
    outer, inner, inside = place(inner_count, blocks, block_p)
    pixel = outer * inner_count + inner
    kept = tl.load(keep_ptr + pixel, mask=inside, other=0) != 0
    target = tl.where(kept, tl.load(target_ptr + pixel, mask=inside, other=0).to(tl.int32), -1)
    grad = tl.where(kept, tl.load(grad_ptr + pixel, mask=inside, other=0.0).to(tl.float32), 0.0)
    logits = input_ptr + outer * stride_outer + offsets(inner, size1, size2, stride0, stride1, stride2, dims)
    output = output_ptr + outer * out_stride_outer
    output += offsets(inner, size1, size2, out_stride0, out_stride1, out_stride2, dims)
    if not one_tile:
        top = tl.load(norm_ptr + pixel, mask=inside, other=0.0)
        log_total = tl.load(norm_ptr + num_pixels + pixel, mask=inside, other=0.0)

    for start in range(0, num_classes, block_c):
        classes = start + tl.arange(0, block_c)[:, None]
        exists = classes < num_classes
        access = exists & inside[None, :]
        x = tl.load(logits[None, :] + classes.to(tl.int64) * stride_c, mask=access, other=0.0)
        x = tl.where(exists, tl.where(kept[None, :], x.to(tl.float32), 0.0), float("-inf"))
        own = classes == target[None, :]
        if one_tile:
            power = tl.exp(x - tl.max(x, 0)[None, :])
            rest = tl.sum(tl.where(own, 0.0, power), 0)
            total = rest + tl.sum(tl.where(own, power, 0.0), 0)
            # p_y - 1 is minus the other probabilities: no difference of close numbers
            delta = tl.where(own, -rest[None, :], power) / total[None, :]
        else:
            delta = tl.exp(x - top[None, :] - log_total[None, :]) - tl.where(own, 1.0, 0.0)
        # A select, since grad may be 0 where delta is NaN, and a dropped pixel is 0 all the same.
        delta = tl.where(kept[None, :], delta * grad[None, :], 0.0)
        tl.store(
            output[None, :] + classes.to(tl.int64) * out_stride_c,
            delta.to(output_ptr.dtype.element_ty),
            mask=access,
        )
