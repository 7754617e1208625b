r"""Cross-entropy of logits that are enlarged to the target's size, without the large logits ever existing.

A network predicts at a quarter of the image's size; ``F.interpolate`` then writes 16 times as many logits, and the
loss reads them back. Here both happen in registers. The (bi-, tri-)linear weights come from whole numbers,

.. math:: s(i) = \frac{\max(a i + b, 0)}{u}, \qquad \text{tap } \lfloor s \rfloor \text{ with weight }
    1 - \{s\}, \text{ tap } \lfloor s \rfloor + 1 \text{ with } \{s\},

so the pixels that use a given logit are known exactly, and forward and backward cannot disagree about them. One and
two dimensions are three with leading axes of size 1.

- Forward: a program takes a block of pixels of one row, so depth and height have one weight for all of it. It
  interpolates the logits of a few classes at a time, each read 2, 4 or 8 times but from the cache, and keeps an online
  softmax. It saves the log-sum-exp of each pixel.
- Backward: a program takes a block of neighbouring low-resolution logits of one row and a few classes, walks over the
  full-size pixels that use them, finds each pixel's probability again from the saved log-sum-exp, and adds up
  weight · g · (p − e_y) in registers. Every element has one program: no atomics, and no buffer but the result.
  A pixel's exponential is taken once for each logit that it uses: 4 times in two dimensions, and that is arithmetic on
  data in the cache. A separable backward (along the width, then along the height) would take it once, but it has to
  write and read an intermediate of full height and low width for all classes, a quarter of the logits that were to
  be avoided; so would partial sums for each cell of the grid, which are four times the low-resolution logits. The
  separable idea is used inside a program: the three columns of logits that a block needs are interpolated along depth
  and height once for a row of pixels, and along the width for each pixel.

A log-sum-exp is kept in float32, and what its rounding cut off in float16: at logits of 50 every probability would
else be off by some 10⁻⁶ of itself, at 10⁴ by 5·10⁻⁴.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from classbalance_losses.kernels import triton_common
from classbalance_losses.kernels.triton_common import OPTIONS, bytes_of, on_device_of

__all__ = ["cross_entropy", "cross_entropy_and_error", "unsupported"]

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
_CLASSES = 8  # a tile's: many would idle at 19 classes, few would read the targets often
_PIXELS = 128


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
    return reasons


def cross_entropy(input: Tensor, target: Tensor, keep: Tensor, align_corners: bool) -> Tensor:
    """Return the cross-entropy (N, *full) of ``input`` (N, C, *low) interpolated to the size of ``target`` (N, *full).

    The same as ``F.interpolate(input, target.shape[1:], mode, align_corners=align_corners)`` with mode "linear",
    "bilinear" or "trilinear", then the cross-entropy in float32; 0 where not kept.
    """
    loss: Tensor = _forward(input, target, keep, align_corners, False)[0]
    return loss


def cross_entropy_and_error(
    input: Tensor, target: Tensor, keep: Tensor, align_corners: bool
) -> tuple[Tensor, Tensor]:
    r"""Return the cross-entropy and, without a gradient, :math:`\lVert p - e_y \rVert^2`, both (N, *full)."""
    loss, error, _, _ = _forward(input, target, keep, align_corners, True)
    return loss, error


class _Axis(NamedTuple):
    """One axis: full-size index i lies at max(step · i + shift, 0) / unit on the low-resolution grid."""

    low: int
    full: int
    step: int
    shift: int
    unit: int


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


@torch.library.custom_op(
    "classbalance_losses::upsampled_forward",
    mutates_args=(),
    schema="(Tensor input, Tensor target, Tensor keep, bool align_corners, bool with_error)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def _forward(
    input: Tensor, target: Tensor, keep: Tensor, align_corners: bool, with_error: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss, error, lse, rest = _outputs(input, target, keep, align_corners, with_error)
    if not target.numel():
        return loss, error, lse, rest
    depth, height, width = _axes(input, target, align_corners)
    block_c, block_p = _tile(input.shape[1], width.full)
    blocks = triton.cdiv(width.full, block_p)
    with on_device_of(input):
        _forward_kernel[(target.shape[0] * depth.full * height.full * blocks,)](
            input,
            target.contiguous(),
            bytes_of(keep),
            loss,
            error,
            lse,
            rest,
            input.shape[1],
            blocks,
            *depth,
            *height,
            *width,
            *_strides(input),
            with_error=with_error,
            deep=depth.low > 1,
            tall=height.low > 1,
            block_c=block_c,
            block_p=block_p,
            **OPTIONS,
        )
    return loss, error, lse, rest


@_forward.register_fake
def _outputs(
    input: Tensor, target: Tensor, keep: Tensor, align_corners: bool, with_error: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def new(dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(target.shape, dtype=dtype, device=input.device)

    error = new() if with_error else torch.empty(0, dtype=torch.float32, device=input.device)
    return new(), error, new(), new(torch.float16)


@torch.library.custom_op(
    "classbalance_losses::upsampled_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor input, Tensor target, Tensor keep, Tensor lse, Tensor rest, bool align_corners)"
    " -> Tensor",
)
def _backward(
    grad: Tensor, input: Tensor, target: Tensor, keep: Tensor, lse: Tensor, rest: Tensor, align_corners: bool
) -> Tensor:
    output = torch.empty_like(input)
    if not output.numel():
        return output
    if not target.numel():
        return output.zero_()
    depth, height, width = _axes(input, target, align_corners)
    block_c, block_p = _tile(input.shape[1], width.low)
    blocks, chunks = triton.cdiv(width.low, block_p), triton.cdiv(input.shape[1], block_c)
    with on_device_of(input):
        _backward_kernel[(input.shape[0] * depth.low * height.low * blocks * chunks,)](
            grad.contiguous(),
            input,
            target.contiguous(),
            bytes_of(keep),
            lse,
            rest,
            output,
            input.shape[1],
            blocks,
            *depth,
            *height,
            *width,
            *_strides(input),
            *_strides(output),
            deep=depth.low > 1,
            tall=height.low > 1,
            block_c=block_c,
            block_p=block_p,
            **OPTIONS,
        )
    return output


@_backward.register_fake
def _(
    grad: Tensor, input: Tensor, target: Tensor, keep: Tensor, lse: Tensor, rest: Tensor, align_corners: bool
) -> Tensor:
    return torch.empty_like(input)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    input, target, keep, ctx.align_corners, _ = inputs
    _, error, lse, rest = output
    ctx.mark_non_differentiable(error, lse, rest)
    ctx.save_for_backward(input, target, keep, lse, rest)


def _gradient(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    input, target, keep, lse, rest = ctx.saved_tensors
    if (
        torch.is_grad_enabled()
    ):  # somebody will differentiate the gradient: it has to be made of torch's operations
        gradient = _differentiable(grad, input, target, keep, ctx.align_corners)
    else:
        gradient = _backward(grad, input, target, keep, lse, rest, ctx.align_corners)
    return gradient, None, None, None, None


_forward.register_autograd(_gradient, setup_context=_save)


def _differentiable(grad: Tensor, input: Tensor, target: Tensor, keep: Tensor, align_corners: bool) -> Tensor:
    size, mode = target.shape[1:], _MODES[input.ndim - 2]
    full = F.interpolate(input.float(), size, mode=mode, align_corners=align_corners)
    log_prob = torch.where(keep.unsqueeze(1), full, 0).log_softmax(1)
    index = torch.where(keep, target.long(), 0).unsqueeze(1)
    loss = torch.where(keep, -log_prob.gather(1, index).squeeze(1), 0)
    return torch.autograd.grad(loss, input, torch.where(keep, grad, 0), create_graph=True)[0]


def _tile(num_classes: int, width: int) -> tuple[int, int]:
    """Return how many classes and pixels a tile has."""
    block_c = min(triton.next_power_of_2(num_classes), _CLASSES)
    return block_c, min(triton.next_power_of_2(width), _PIXELS)


@triton.jit
def add_classes(
    x: tl.tensor,
    own: tl.tensor,
    exists: tl.tensor,
    top: tl.tensor,
    others: tl.tensor,
    squares: tl.tensor,
    own_logit: tl.tensor,
    with_error: tl.constexpr,
) -> tl.tensor:
    """Take a tile (classes, pixels) of logits into the sums of an online softmax.

    top = max x, others = Σ_{k≠y} e^{x_k − top}, squares = Σ_{k≠y} e^{2 (x_k − top)}, own_logit = x_y.
    """
    x = tl.where(exists, x, float("-inf"))
    new_top = tl.maximum(top, tl.max(x, 0))
    shift = tl.where(new_top == float("-inf"), 0.0, new_top)  # -inf - -inf would be NaN
    rest = tl.where(own, 0.0, tl.exp(x - shift[None, :]))
    shrink = tl.exp(top - shift)
    others = others * shrink + tl.sum(rest, 0)
    if with_error:
        squares = squares * shrink * shrink + tl.sum(rest * rest, 0)
    own_logit += tl.sum(tl.where(own, x, 0.0), 0)
    return new_top, others, squares, own_logit


@triton.jit
def finish(top: tl.tensor, others: tl.tensor, squares: tl.tensor, own_logit: tl.tensor) -> tl.tensor:
    """Return the cross-entropy, ‖p − e_y‖² and log Σ e^{x_k − top} of each pixel.

    No difference of close numbers is taken: ‖p − e_y‖² = Σ_{k≠y} p_k² + (Σ_{k≠y} p_k)², and the loss is the sum of
    two numbers that are never negative.
    """
    total = others + tl.exp(own_logit - top)
    log_total = tl.log(total)
    loss = log_total + (top - own_logit)
    return loss, (squares + others * others) / (total * total), log_total


@triton.jit
def _taps(index: tl.tensor, low: tl.tensor, step: tl.tensor, shift: tl.tensor, unit: tl.tensor) -> tl.tensor:
    """Return the two low-resolution indices that a full-size one lies between, and the second's weight."""
    scaled = tl.maximum(index * step + shift, 0)
    first = scaled // unit
    weight = (scaled - first * unit).to(tl.float32) / unit
    return first, tl.minimum(first + 1, low - 1), weight


@triton.jit
def _first(
    tap: tl.tensor, low: tl.tensor, full: tl.tensor, step: tl.tensor, shift: tl.tensor, unit: tl.tensor
) -> tl.tensor:
    """Return the first full-size index whose lower tap is ``tap`` or more."""
    distance = tl.maximum(tap * unit - shift, 0)
    index = tl.minimum((distance + step - 1) // step, full)
    return tl.where(tap <= 0, 0, tl.where(tap >= low, full, index))


@triton.jit
def _share(index: tl.tensor, low: tl.tensor, first: tl.tensor, weight: tl.tensor) -> tl.tensor:
    """Return with which weight a pixel of taps ``first`` and ``first + 1`` uses the logit ``index``."""
    last = tl.where(index == low - 1, 1.0, 1.0 - weight)  # at the end both taps are the same logit
    return tl.where(first == index, last, weight)


@triton.jit
def _line(
    logits: tl.tensor,
    mask: tl.tensor,
    y0: tl.tensor,
    y1: tl.tensor,
    v: tl.tensor,
    stride_y: tl.tensor,
    tall: tl.constexpr,
) -> tl.tensor:
    """Interpolate along the height."""
    value = tl.load(logits + y0.to(tl.int64) * stride_y, mask=mask, other=0.0).to(tl.float32)
    if tall:
        below = tl.load(logits + y1.to(tl.int64) * stride_y, mask=mask, other=0.0).to(tl.float32)
        value = (1.0 - v) * value + v * below
    return value


@triton.jit
def _column(
    logits: tl.tensor,
    mask: tl.tensor,
    z0: tl.tensor,
    z1: tl.tensor,
    w: tl.tensor,
    stride_z: tl.tensor,
    y0: tl.tensor,
    y1: tl.tensor,
    v: tl.tensor,
    stride_y: tl.tensor,
    deep: tl.constexpr,
    tall: tl.constexpr,
) -> tl.tensor:
    """Interpolate along depth and height, at the low-resolution columns that ``logits`` points to."""
    value = _line(logits + z0.to(tl.int64) * stride_z, mask, y0, y1, v, stride_y, tall)
    if deep:
        behind = _line(logits + z1.to(tl.int64) * stride_z, mask, y0, y1, v, stride_y, tall)
        value = (1.0 - w) * value + w * behind
    return value


@triton.jit
def _forward_kernel(
    input_ptr: tl.tensor,
    target_ptr: tl.tensor,
    keep_ptr: tl.tensor,
    loss_ptr: tl.tensor,
    error_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    rest_ptr: tl.tensor,
    num_classes: tl.tensor,
    blocks: tl.tensor,
    low_z: tl.tensor,
    full_z: tl.tensor,
    step_z: tl.tensor,
    shift_z: tl.tensor,
    unit_z: tl.tensor,
    low_y: tl.tensor,
    full_y: tl.tensor,
    step_y: tl.tensor,
    shift_y: tl.tensor,
    unit_y: tl.tensor,
    low_x: tl.tensor,
    full_x: tl.tensor,
    step_x: tl.tensor,
    shift_x: tl.tensor,
    unit_x: tl.tensor,
    stride_n: tl.tensor,
    stride_c: tl.tensor,
    stride_z: tl.tensor,
    stride_y: tl.tensor,
    stride_x: tl.tensor,
    with_error: tl.constexpr,
    deep: tl.constexpr,
    tall: tl.constexpr,
    block_c: tl.constexpr,
    block_p: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    row = program // blocks
    x = (program % blocks) * block_p + tl.arange(0, block_p)
    inside = x < full_x
    z0, z1, w = _taps(row // full_y % full_z, low_z, step_z, shift_z, unit_z)
    y0, y1, v = _taps(row % full_y, low_y, step_y, shift_y, unit_y)
    x0, x1, u = _taps(x, low_x, step_x, shift_x, unit_x)
    image = input_ptr + (row // full_y // full_z).to(tl.int64) * stride_n
    left = image + x0.to(tl.int64) * stride_x
    right = image + x1.to(tl.int64) * stride_x
    pixel = row.to(tl.int64) * full_x + x
    kept = tl.load(keep_ptr + pixel, mask=inside, other=0) != 0
    target = tl.where(kept, tl.load(target_ptr + pixel, mask=inside, other=0).to(tl.int32), -1)

    top = tl.full((block_p,), float("-inf"), tl.float32)
    others = tl.zeros((block_p,), tl.float32)
    squares = tl.zeros((block_p,), tl.float32)
    own_logit = tl.zeros((block_p,), tl.float32)
    for start in range(0, num_classes, block_c):
        classes = start + tl.arange(0, block_c)[:, None]
        exists = classes < num_classes
        offset = classes.to(tl.int64) * stride_c
        mask = exists & inside[None, :]
        a = _column(left[None, :] + offset, mask, z0, z1, w, stride_z, y0, y1, v, stride_y, deep, tall)
        b = _column(right[None, :] + offset, mask, z0, z1, w, stride_z, y0, y1, v, stride_y, deep, tall)
        value = tl.where(kept[None, :], (1.0 - u)[None, :] * a + u[None, :] * b, 0.0)
        own = classes == target[None, :]
        top, others, squares, own_logit = add_classes(
            value, own, exists, top, others, squares, own_logit, with_error
        )

    loss, error, log_total = finish(top, others, squares, own_logit)
    tl.store(loss_ptr + pixel, tl.where(kept, loss, 0.0), mask=inside)
    lse = top + log_total
    tl.store(lse_ptr + pixel, tl.where(kept, lse, 0.0), mask=inside)
    rest = (top - lse) + log_total
    tl.store(rest_ptr + pixel, tl.where(kept, rest, 0.0).to(tl.float16), mask=inside)
    if with_error:
        tl.store(error_ptr + pixel, tl.where(kept, error, 0.0), mask=inside)


@triton.jit
def _backward_kernel(
    grad_ptr: tl.tensor,
    input_ptr: tl.tensor,
    target_ptr: tl.tensor,
    keep_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    rest_ptr: tl.tensor,
    output_ptr: tl.tensor,
    num_classes: tl.tensor,
    blocks: tl.tensor,
    low_z: tl.tensor,
    full_z: tl.tensor,
    step_z: tl.tensor,
    shift_z: tl.tensor,
    unit_z: tl.tensor,
    low_y: tl.tensor,
    full_y: tl.tensor,
    step_y: tl.tensor,
    shift_y: tl.tensor,
    unit_y: tl.tensor,
    low_x: tl.tensor,
    full_x: tl.tensor,
    step_x: tl.tensor,
    shift_x: tl.tensor,
    unit_x: tl.tensor,
    stride_n: tl.tensor,
    stride_c: tl.tensor,
    stride_z: tl.tensor,
    stride_y: tl.tensor,
    stride_x: tl.tensor,
    out_stride_n: tl.tensor,
    out_stride_c: tl.tensor,
    out_stride_z: tl.tensor,
    out_stride_y: tl.tensor,
    out_stride_x: tl.tensor,
    deep: tl.constexpr,
    tall: tl.constexpr,
    block_c: tl.constexpr,
    block_p: tl.constexpr,
) -> None:
    # Programs of the same pixels follow each other: what they share is in the cache.
    chunks = tl.cdiv(num_classes, block_c)
    program = tl.program_id(0) // chunks
    row = program // blocks
    n = (row // low_y // low_z).to(tl.int64)
    own_z = row // low_y % low_z
    own_y = row % low_y
    own_x = (program % blocks) * block_p + tl.arange(0, block_p)
    classes = tl.program_id(0) % chunks * block_c + tl.arange(0, block_c)[:, None]
    mask = (classes < num_classes) & (own_x < low_x)[None, :]

    image = input_ptr + n * stride_n + classes.to(tl.int64) * stride_c
    centre_ptr = image + own_x.to(tl.int64)[None, :] * stride_x
    left_ptr = image + tl.maximum(own_x - 1, 0).to(tl.int64)[None, :] * stride_x
    right_ptr = image + tl.minimum(own_x + 1, low_x - 1).to(tl.int64)[None, :] * stride_x

    total = tl.zeros((block_c, block_p), tl.float32)
    stop_z = _first(own_z + 1, low_z, full_z, step_z, shift_z, unit_z)
    stop_y = _first(own_y + 1, low_y, full_y, step_y, shift_y, unit_y)
    start_y = _first(own_y - 1, low_y, full_y, step_y, shift_y, unit_y)
    start_x = _first(own_x - 1, low_x, full_x, step_x, shift_x, unit_x)
    stop_x = tl.where(own_x < low_x, _first(own_x + 1, low_x, full_x, step_x, shift_x, unit_x), 0)
    for z in range(_first(own_z - 1, low_z, full_z, step_z, shift_z, unit_z), stop_z):
        z0, z1, w = _taps(z, low_z, step_z, shift_z, unit_z)
        share_z = _share(own_z, low_z, z0, w)
        for y in range(start_y, stop_y):
            y0, y1, v = _taps(y, low_y, step_y, shift_y, unit_y)
            share = share_z * _share(own_y, low_y, y0, v)
            left = _column(left_ptr, mask, z0, z1, w, stride_z, y0, y1, v, stride_y, deep, tall)
            centre = _column(centre_ptr, mask, z0, z1, w, stride_z, y0, y1, v, stride_y, deep, tall)
            right = _column(right_ptr, mask, z0, z1, w, stride_z, y0, y1, v, stride_y, deep, tall)
            pixels = ((n * full_z + z) * full_y + y) * full_x
            for i in range(0, tl.max(stop_x - start_x, 0)):
                x = start_x + i
                inside = x < stop_x
                kept = tl.load(keep_ptr + pixels + x, mask=inside, other=0) != 0
                target = tl.load(target_ptr + pixels + x, mask=inside, other=0).to(tl.int32)
                grad = tl.load(grad_ptr + pixels + x, mask=inside, other=0.0).to(tl.float32)
                lse = tl.load(lse_ptr + pixels + x, mask=inside, other=0.0)
                rest = tl.load(rest_ptr + pixels + x, mask=inside, other=0.0).to(tl.float32)
                # As in _taps, but the lower tap is this column or the one before: there is nothing to divide.
                beyond = tl.maximum(x * step_x + shift_x, 0) - own_x * unit_x
                before = beyond < 0
                x0 = tl.where(before, own_x - 1, own_x)
                u = tl.where(before, beyond + unit_x, beyond).to(tl.float32) / unit_x
                first = tl.where(before[None, :], left, centre)
                second = tl.where(before[None, :], centre, right)
                value = (1.0 - u)[None, :] * first + u[None, :] * second
                used = mask & kept[None, :]
                power = tl.exp(tl.where(used, (value - lse[None, :]) - rest[None, :], 0.0))
                delta = power - tl.where(classes == target[None, :], 1.0, 0.0)
                factor = share * _share(own_x, low_x, x0, u) * grad
                total += tl.where(used, factor[None, :] * delta, 0.0)

    output = output_ptr + n * out_stride_n + classes.to(tl.int64) * out_stride_c
    output += own_z.to(tl.int64) * out_stride_z + own_y.to(tl.int64) * out_stride_y
    tl.store(
        output + own_x.to(tl.int64)[None, :] * out_stride_x, total.to(output_ptr.dtype.element_ty), mask=mask
    )
