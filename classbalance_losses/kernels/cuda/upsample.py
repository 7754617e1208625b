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

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from classbalance_losses.kernels import reference
from classbalance_losses.kernels.call import Labels, Logits, Resize
from classbalance_losses.kernels.cuda import upsample_kernels as kernels
from classbalance_losses.kernels.cuda.common import (
    Launch,
    all_fit,
    check_fit,
    define,
)
from classbalance_losses.kernels.cuda.pixel import classes
from classbalance_losses.kernels.forms.cuda import for_kernel, form_of
from classbalance_losses.kernels.operators import by_reference
from classbalance_losses.kernels.plain import needs_reference

_PIXELS = 4  # of a cell, for one lane
_STRIP = 16  # rows of one program: it goes over one more, the cells above the first
_LANES = 128
# Of a thread in backward, without biases and with: the compiler would take more, and fewer warps were to hide its
# loads.
_REGISTERS = 192, 208


def upsampled_pass(
    logits: Logits,
    resize: Resize,
    labels: Labels,
    kind: str,
    numbers: list[float],
    *,
    with_error: bool = False,
) -> tuple[Tensor, ...]:
    """Return φ (N, *full), a function of the cross-entropy, and, if asked, the constant ‖p − e_y‖²."""
    input, target, ignore_index = logits.input, labels.target, labels.ignore_index
    read = resize.align_corners, logits.bias, logits.single
    found: tuple[Tensor, ...] = _UpsampledPass.apply(  # type: ignore[no-untyped-call]
        input, target, ignore_index, kind, numbers, with_error, *read
    )
    return found


class _UpsampledPass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        ignore_index: int,
        kind: str,
        numbers: list[float],
        with_error: bool,
        align_corners: bool,
        bias: Tensor | None,
        single: bool,
    ) -> tuple[Tensor, ...]:
        value, lse, rest, *more = _FORWARD(
            input, target, ignore_index, kind, numbers, with_error, align_corners, bias, single
        )
        error, slope = (more, []) if with_error else ([], more)
        ctx.mark_non_differentiable(*error)
        ctx.set_materialize_grads(False)  # they would be zeros as large as the maps
        ctx.save_for_backward(input, target, bias, lse, rest, *slope)
        ctx.how = ignore_index, kind, numbers, align_corners, single
        return value, *error

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 9
        input, target, bias, lse, rest, *slope = ctx.saved_tensors
        ignore_index, kind, numbers, align_corners, single = ctx.how
        if not needs_reference(grad):
            norm = lse, rest, slope[0] if slope else None
            how = ignore_index, align_corners, *norm, bias, single
            return _BACKWARD(grad, input, target, *how), *(None,) * 8

        def values(input: Tensor) -> tuple[Tensor]:
            logits = Logits(input, Resize(tuple(target.shape[1:]), align_corners), bias, single)
            labels = Labels(target, classes(input.shape, single), ignore_index)
            return (reference.pixel_values(logits, labels, form_of(kind, numbers, None)),)

        return by_reference(values, input, (grad,)), *(None,) * 8


def _forward(
    input: Tensor,
    target: Tensor,
    ignore_index: int,
    kind: str,
    numbers: Sequence[float],
    with_error: bool,
    align_corners: bool,
    bias: Tensor | None = None,
    single: bool = False,
) -> list[Tensor]:
    value, lse, rest, *more = outputs = _outputs(
        input, target, ignore_index, kind, numbers, with_error, align_corners
    )
    if not target.numel():
        return outputs
    error, slope = (more[0], None) if with_error else (None, more[0] if more else None)
    fits = all_fit(input.device)
    num_classes = classes(input.shape, single)
    kind, (gamma, *_) = for_kernel(kind, numbers, num_classes)
    launch = _forward_launch(
        ignore_index, kind, gamma, align_corners, single, input.shape, target.shape, input.stride()
    )
    launch(input, target.contiguous(), bias, value, error, lse, rest, slope, fits)
    check_fit(fits, num_classes)
    return outputs


def _outputs(
    input: Tensor,
    target: Tensor,
    ignore_index: int,
    kind: str,
    numbers: Sequence[float],
    with_error: bool,
    align_corners: bool,
    *_: Any,
) -> list[Tensor]:
    """Return φ, the log-sum-exp, what its rounding cut off and, if asked, ‖p − e_y‖², or the slope if it is not 1."""

    def new(dtype: torch.dtype = torch.float32) -> Tensor:
        return input.new_empty(target.shape, dtype=dtype)

    more = [new()] if with_error or kind != "cross entropy" else []
    return [new(), new(), new(torch.float16), *more]


def _backward(
    grad: Tensor,
    input: Tensor,
    target: Tensor,
    ignore_index: int,
    align_corners: bool,
    lse: Tensor,
    rest: Tensor,
    slope: Tensor | None = None,
    bias: Tensor | None = None,
    single: bool = False,
) -> Tensor:
    output = torch.empty_like(input)
    if not output.numel():
        return output
    if not target.numel():
        return output.zero_()
    how = ignore_index, align_corners, bias is not None, single
    launch = _backward_launch(*how, input.shape, target.shape, input.stride(), output.stride())
    launch(grad.contiguous(), input, target.contiguous(), bias, lse, rest, slope, output)
    return output


@lru_cache(maxsize=1 << 10)
def _forward_launch(
    ignore_index: int,
    kind: str,
    gamma: float,
    align_corners: bool,
    single: bool,
    shape: Sequence[int],
    full: Sequence[int],
    stride: Sequence[int],
) -> Launch:
    low_z, full_z, low_y, full_y, low_x, full_x = sizes = _sizes(shape, full)
    of_cell = _pixels_of_cell(low_x, full_x, align_corners)
    pixels = min(of_cell, _PIXELS)
    rounds = triton.cdiv(of_cell, pixels)
    lanes = full_y * (low_x + 1)
    blocks = triton.cdiv(lanes, _LANES)
    return Launch(
        kernels.forward,
        shape[0] * full_z * rounds * blocks,
        (classes(shape, single), lanes, blocks, rounds, ignore_index, *sizes, *_all_five(stride), gamma),
        (kind, align_corners, int(single), low_z > 1, low_y > 1, pixels, _LANES),
        num_warps=_LANES // 32,
    )


@lru_cache(maxsize=1 << 10)
def _backward_launch(
    ignore_index: int,
    align_corners: bool,
    biased: bool,
    single: bool,
    shape: Sequence[int],
    full: Sequence[int],
    *strides: Sequence[int],
) -> Launch:
    low_z, _, low_y, _, low_x, full_x = sizes = _sizes(shape, full)
    of_cell = _pixels_of_cell(low_x, full_x, align_corners)
    pixels = min(of_cell, _PIXELS)
    lanes = min((32, 64), key=lambda lanes: (triton.cdiv(low_x, lanes) * lanes, -lanes))
    blocks, chunks, strips = triton.cdiv(low_x, lanes), triton.cdiv(shape[1], 4), triton.cdiv(low_y, _STRIP)
    counts = (classes(shape, single), chunks, blocks, strips, triton.cdiv(of_cell, pixels), ignore_index)
    return Launch(
        kernels.backward,
        shape[0] * low_z * strips * blocks * chunks,
        (*counts, *sizes, *(step for stride in strides for step in _all_five(stride))),
        (align_corners, int(single), low_z > 1, _STRIP, pixels, lanes),
        maxnreg=_REGISTERS[biased],
        num_warps=lanes // 32,
    )


def _sizes(shape: Sequence[int], full: Sequence[int]) -> tuple[int, ...]:
    """Return both sizes of depth, height and width: one and two axes are three, of which the first are of size 1."""
    pairs = [(1, 1)] * (5 - len(shape)) + list(zip(shape[2:], full[1:], strict=True))
    return tuple(size for pair in pairs for size in pair)


def _all_five(stride: Sequence[int]) -> tuple[int, ...]:
    """Return those of N, C, depth, height and width."""
    return (*stride[:2], *[0] * (5 - len(stride)), *stride[2:])


def _pixels_of_cell(low: int, full: int, align_corners: bool) -> int:
    """Return how many full-size indices a cell of the last axis has at most."""
    if not align_corners:
        step, unit = low, full
    elif low == 1 or full == 1:
        step, unit = 1, full + 1
    else:
        step, unit = low - 1, full - 1
    return min(-(-unit // step), full)


_FORWARD = define(
    "cuda_upsampled_forward(Tensor input, Tensor target, int ignore_index, str kind, float[] numbers, "
    "bool with_error, bool align_corners, Tensor? bias=None, bool single=False) -> Tensor[]",
    _forward,
    _outputs,
)
_BACKWARD = define(
    "cuda_upsampled_backward(Tensor grad, Tensor input, Tensor target, int ignore_index, bool align_corners, "
    "Tensor lse, Tensor rest, Tensor? slope=None, Tensor? bias=None, bool single=False) -> Tensor",
    _backward,
    lambda grad, logits, *_: torch.empty_like(logits),
)
