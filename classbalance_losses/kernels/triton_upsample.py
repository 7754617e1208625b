r"""Cross-entropy of logits that are enlarged to the target's size, without the large logits ever existing.

A network predicts at a quarter of the image's size; ``F.interpolate`` then writes 16 times as many logits, and the
loss reads them back. Here both happen in registers. The (bi-, tri-)linear weights come from whole numbers,

.. math:: s(i) = \frac{\max(a i + b, 0)}{u}, \qquad \text{tap } \lfloor s \rfloor \text{ with weight }
    1 - \{s\}, \text{ tap } \lfloor s \rfloor + 1 \text{ with } \{s\},

so the pixels that use a given logit are known exactly, and forward and backward cannot disagree about them. One and
two dimensions are three with leading axes of size 1.

Between two neighbouring low-resolution columns lies a cell of full-size pixels; before the first column and after the
last lie cells whose pixels all take that column. Arithmetic has lanes alone, classes go by name: there is no tile whose
layout Triton would have to guess.

- Forward: a lane takes up to four pixels of a cell. It reads the cell's corners, neighbours in memory for neighbouring
  lanes, once for each class, interpolates them for each pixel, and keeps an online softmax of each. It saves the
  log-sum-exp.
- Backward: a lane takes a low-resolution column and four classes, and a program a strip of rows. It walks down the
  strip over the full-size pixels of the cells to its left and right, finds each pixel's probability again from what was
  saved, and adds up weight · g · (p − e_y) for the row above and the row below, which comes next. Every element
  has one lane: no atomics, and no buffer but the result. A pixel's exponential is taken for both of its columns, and
  in three dimensions for both of its planes: less than it would cost to hand sums from lane to lane.

A log-sum-exp is kept in float32, and what its rounding cut off in float16: at logits of 50 every probability would
else be off by some 10⁻⁶ of itself, at 10⁴ by 5·10⁻⁴.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from classbalance_losses.kernels import triton_common, triton_upsample_kernels
from classbalance_losses.kernels.triton_common import OPTIONS, by_torch, bytes_of, on_device_of
from classbalance_losses.kernels.triton_library import define

__all__ = ["cross_entropy", "cross_entropy_and_error", "unsupported"]

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
_PIXELS = 4  # of a cell, for one lane
_STRIP = 16  # rows of one program: it goes over one more, the cells above the first
_LANES = 128
_REGISTERS = (
    184  # of a thread in backward: the compiler would take more, and fewer warps were to hide its loads
)


def unsupported(input: Tensor, target: Tensor) -> list[str]:
    """Return the reasons, in words, why the kernels cannot take these logits and targets; none: []."""
    reasons = triton_common.unsupported(input, target)
    if input.ndim - 2 not in _MODES:
        reasons.append(f"the logits have {input.ndim - 2} spatial axes, not 1 to 3")
    if input.ndim != target.ndim + 1:
        reasons.append(f"the target has {target.ndim} axes, not {input.ndim - 1}")
    for low, full in zip(input.shape[2:], target.shape[1:], strict=False):
        if low < 1:
            reasons.append("the logits have an axis of size 0")
        if low * full >= 1 << 29:
            reasons.append(
                f"the sizes {low} and {full} of an axis are too large for whole numbers of 32 bits"
            )
    if math.prod(target.shape[-2:]) >= 1 << 31:
        reasons.append("the target has planes of 2^31 pixels or more")
    return reasons


def cross_entropy(input: Tensor, target: Tensor, keep: Tensor, align_corners: bool) -> Tensor:
    """Return the cross-entropy (N, *full) of ``input`` (N, C, *low) interpolated to the size of ``target`` (N, *full).

    The same as ``F.interpolate(input, target.shape[1:], mode, align_corners=align_corners)`` with mode "linear",
    "bilinear" or "trilinear", then the cross-entropy in float32; 0 where not kept.
    """
    loss: Tensor = _CrossEntropy.apply(input, target, keep, align_corners, False)[0]  # type: ignore[no-untyped-call]
    return loss


def cross_entropy_and_error(
    input: Tensor, target: Tensor, keep: Tensor, align_corners: bool
) -> tuple[Tensor, Tensor]:
    r"""Return the cross-entropy and, without a gradient, :math:`\lVert p - e_y \rVert^2`, both (N, *full)."""
    loss, error = _CrossEntropy.apply(input, target, keep, align_corners, True)  # type: ignore[no-untyped-call]
    return loss, error


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, target: Tensor, keep: Tensor, align_corners: bool, with_error: bool
    ) -> tuple[Tensor, Tensor]:
        loss, error, lse, rest = torch.ops.classbalance_losses.upsampled_forward(
            input, target, keep, align_corners, with_error
        )
        ctx.align_corners = align_corners
        ctx.mark_non_differentiable(error)
        ctx.set_materialize_grads(False)  # they would be zeros as large as the maps
        ctx.save_for_backward(input, target, keep, lse, rest)
        return loss, error

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 5
        input, target, keep, lse, rest = ctx.saved_tensors
        if by_torch(grad):
            return _differentiable(grad, input, target, keep, ctx.align_corners), *(None,) * 4
        gradient: Tensor = torch.ops.classbalance_losses.upsampled_backward(
            grad, input, target, keep, lse, rest, ctx.align_corners
        )
        return gradient, *(None,) * 4


class _Axis(NamedTuple):
    """One axis: full-size index i lies at max(step · i + shift, 0) / unit on the low-resolution grid."""

    low: int
    full: int
    step: int
    shift: int
    unit: int

    @property
    def pixels(self) -> int:
        """Return how many full-size indices a cell has at most."""
        return min(-(-self.unit // self.step), self.full)


def _axis(low: int, full: int, align_corners: bool) -> _Axis:
    if not align_corners:
        return _Axis(low, full, 2 * low, low - full, 2 * full)
    if low == 1 or full == 1:
        return _Axis(low, full, 1, 0, full + 1)  # all of it at the first
    return _Axis(low, full, low - 1, 0, full - 1)


def _axes(input: Tensor, target: Tensor, align_corners: bool) -> list[_Axis]:
    """Return depth, height and width."""
    sizes = [(1, 1)] * (5 - input.ndim) + list(zip(input.shape[2:], target.shape[1:], strict=True))
    return [_axis(low, full, align_corners) for low, full in sizes]


def _strides(logits: Tensor) -> tuple[int, ...]:
    """Return those of N, C, depth, height and width."""
    return (*logits.stride()[:2], *[0] * (5 - logits.ndim), *logits.stride()[2:])


def _forward(
    input: Tensor, target: Tensor, keep: Tensor, align_corners: bool, with_error: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss, error, lse, rest = _outputs(input, target, keep, align_corners, with_error)
    if not target.numel():
        return loss, error, lse, rest
    depth, height, width = _axes(input, target, align_corners)
    pixels = min(width.pixels, _PIXELS)
    rounds = triton.cdiv(width.pixels, pixels)
    lanes = height.full * (width.low + 1)
    blocks = triton.cdiv(lanes, _LANES)
    with on_device_of(input):
        triton_upsample_kernels.forward[(target.shape[0] * depth.full * rounds * blocks,)](
            input,
            target.contiguous(),
            bytes_of(keep),
            loss,
            error,
            lse,
            rest,
            input.shape[1],
            lanes,
            blocks,
            rounds,
            *depth,
            *height,
            *width,
            *_strides(input),
            with_error=with_error,
            deep=depth.low > 1,
            tall=height.low > 1,
            pixels=pixels,
            block=_LANES,
            num_warps=_LANES // 32,
            **OPTIONS,
        )
    return loss, error, lse, rest


def _outputs(
    input: Tensor, target: Tensor, keep: Tensor, align_corners: bool, with_error: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def new(dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(target.shape, dtype=dtype, device=input.device)

    error = new() if with_error else torch.empty(0, dtype=torch.float32, device=input.device)
    return new(), error, new(), new(torch.float16)


def _backward(
    grad: Tensor, input: Tensor, target: Tensor, keep: Tensor, lse: Tensor, rest: Tensor, align_corners: bool
) -> Tensor:
    output = torch.empty_like(input)
    if not output.numel():
        return output
    if not target.numel():
        return output.zero_()
    depth, height, width = _axes(input, target, align_corners)
    pixels = min(width.pixels, _PIXELS)
    lanes = min((32, 64), key=lambda lanes: (triton.cdiv(width.low, lanes) * lanes, -lanes))
    blocks, chunks = triton.cdiv(width.low, lanes), triton.cdiv(input.shape[1], 4)
    strips = triton.cdiv(height.low, _STRIP)
    with on_device_of(input):
        triton_upsample_kernels.backward[(input.shape[0] * depth.low * strips * blocks * chunks,)](
            grad.contiguous(),
            input,
            target.contiguous(),
            bytes_of(keep),
            lse,
            rest,
            output,
            input.shape[1],
            chunks,
            blocks,
            strips,
            triton.cdiv(width.pixels, pixels),
            *depth,
            *height,
            *width,
            *_strides(input),
            *_strides(output),
            deep=depth.low > 1,
            strip=_STRIP,
            pixels=pixels,
            block=lanes,
            maxnreg=_REGISTERS,
            num_warps=lanes // 32,
            **OPTIONS,
        )
    return output


def _like_input(grad: Tensor, input: Tensor, *_: object) -> Tensor:
    return torch.empty_like(input)


define(
    "upsampled_forward(Tensor input, Tensor target, Tensor keep, bool align_corners, bool with_error)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _outputs,
)
define(
    "upsampled_backward(Tensor grad, Tensor input, Tensor target, Tensor keep, Tensor lse, Tensor rest, "
    "bool align_corners) -> Tensor",
    _backward,
    _like_input,
)


def _differentiable(grad: Tensor, input: Tensor, target: Tensor, keep: Tensor, align_corners: bool) -> Tensor:
    size, mode = target.shape[1:], _MODES[input.ndim - 2]
    has_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        full = F.interpolate(input.float(), size, mode=mode, align_corners=align_corners)
        log_prob = torch.where(keep.unsqueeze(1), full, 0).log_softmax(1)
        index = torch.where(keep, target.long(), 0).unsqueeze(1)
        loss = torch.where(keep, -log_prob.gather(1, index).squeeze(1), 0)
    return torch.autograd.grad(loss, input, torch.where(keep, grad, 0), create_graph=has_graph)[0]
