"""What the kernels share on the device: where pixels lie, what their labels say, and the online softmax.

Parameters of kernels and of what they call have no annotations, unless they are constants: all are tensors, or numbers
that become such.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# ruff: noqa: ANN001, ANN201

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

LOG2E = tl.constexpr(math.log2(math.e))
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)


@triton.jit
def place(inner_count, blocks, block: tl.constexpr):
    """Return this program's stretch, its pixels in there (block,) and which of them exist."""
    program = tl.program_id(0)
    inner = (program % blocks).to(tl.int64) * block + tl.arange(0, block)
    return (program // blocks).to(tl.int64), inner, inner < inner_count


INTERPRETED = not isinstance(place, triton.runtime.JITFunction)
_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit
def address(ptr, outer, inner, row_size, stride_outer, stride_row, stride_pixel, in_rows: tl.constexpr):
    """Return where the pixels of a stretch have their first logit."""
    ptr += outer * stride_outer
    if in_rows:
        ptr += inner // row_size * stride_row
        inner = inner % row_size
    return ptr + inner * stride_pixel


@triton.jit
def labels(target_ptr, pixel, inside, ignore_index, checked: tl.constexpr):
    """Return labels, and whether they count. As integers of 64 bits those of all types are compared rightly.

    Once they were ``checked``, which are classes or to be ignored, as many bits are enough as ``ignore_index`` has.
    """
    dtype: tl.constexpr = ignore_index.dtype if checked else tl.int64
    label = tl.load(target_ptr + pixel, mask=inside, other=0).to(dtype)
    return label, label != ignore_index.to(dtype)


@triton.jit
def as_class(label, num_classes):
    """Return a label as a class, which it is also where the label is none: something may be read by it."""
    return tl.minimum(label.to(tl.uint32), num_classes - 1).to(tl.int32)


@triton.jit
def refuse(fits_ptr, outside, together: tl.constexpr, block: tl.constexpr):
    """Say that there is a label to be refused. Whoever finds one does, and all say the same.

    ``together``: how many neighbours a thread has. It writes for them once: a write for each would move them to
    other threads, through shared memory.
    """
    each: tl.constexpr = block // together
    if together > 1:
        outside = tl.max(tl.reshape(outside.to(tl.int32), (each, together)), 1) != 0
    tl.store(fits_ptr + tl.zeros((each,), tl.int32), tl.zeros((each,), tl.int32), mask=outside)


@triton.jit
def exp2(x):
    """Return 2^x, 0 where that is not a normal number: one instruction, where tl.exp takes five."""
    if _INTERPRETED:
        y = tl.exp2(x)
    else:
        y = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return y


@triton.jit
def at_most(x, most):
    """Return the smaller one, and ``most`` in the place of NaN, as the device's minimum has it."""
    # Not every Triton's interpreter does so.
    return tl.where(x < most, x, most) if _INTERPRETED else tl.minimum(x, most)


@triton.jit
def exp(x):
    """Return e^x, as ``exp2``."""
    return tl.exp(x) if _INTERPRETED else exp2(x * LOG2E)


@triton.jit
def divide(a, b):
    """Return a / b, off by two units in the last place at most, for a b whose reciprocal is a normal number."""
    if _INTERPRETED:
        y = a / b
    else:
        y = a * tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [b], dtype=tl.float32, is_pure=True, pack=1
        )
    return y


@triton.jit
def log1p(x):
    """Return log(1 + x) for x > -1, not infinite, off by 10⁻⁷ of itself at most; -88 for -1.

    1 + x = 2^e (1 + m) for m in [-1/4, 1/2), in which nothing is lost that 1 + x would lose. Then a polynomial: in all
    it takes half of the instructions of tl.log and a correction for what was lost.
    """
    exponent = ((1.0 + x).to(tl.int32, bitcast=True) - 0x3F400000) & -0x800000
    scale = (0x3F800000 - exponent).to(tl.float32, bitcast=True)
    m = tl.fma(x, scale, scale - 1.0)
    y = tl.fma(m, -0.04507478326559067, 0.10463020950555801)
    y = tl.fma(m, y, -0.13161194324493408)
    y = tl.fma(m, y, 0.14478395879268646)
    y = tl.fma(m, y, -0.1664731204509735)
    y = tl.fma(m, y, 0.19990861415863037)
    y = tl.fma(m, y, -0.2500009536743164)
    y = tl.fma(m, y, 0.3333345055580139)
    y = tl.fma(m, y, -0.5)
    y = tl.fma(m * m, y, m)
    return tl.fma(exponent.to(tl.float32), 8.262958294867817e-08, y)  # log 2 / 2^23


@triton.jit
def with_bias(x, bias_ptr, k):
    """Return logits of class ``k``, one or one for each, as float32 and with the class's bias."""
    x = x.to(tl.float32)
    if bias_ptr is not None:
        x += tl.load(bias_ptr + k)
    return x


@triton.jit
def load_class(logits, bias_ptr, k, step, inside, single: tl.constexpr):
    """Return the logits of class ``k``; of a ``single`` logit a pixel, class 0's is 0 and class 1's that logit."""
    if single:
        x = tl.where(k == 0, 0.0, tl.load(logits, mask=inside, other=0.0).to(tl.float32))
    else:
        x = tl.load(logits + k * step, mask=inside, other=0.0)
    return with_bias(x, bias_ptr, k)


@triton.jit
def load_classes(logits, bias_ptr, k, number: tl.constexpr, step, inside):
    """Return the logits, there, of up to four of ``number`` classes from ``k`` on.

    A mask from memory would forbid wide loads.
    """
    x0 = with_bias(tl.load(logits, mask=inside, other=0.0), bias_ptr, k)
    x1 = x0
    x2 = x0
    x3 = x0
    if number > 1:
        x1 = with_bias(tl.load(logits + step, mask=inside, other=0.0), bias_ptr, k + 1)
    if number > 2:
        x2 = with_bias(tl.load(logits + 2 * step, mask=inside, other=0.0), bias_ptr, k + 2)
    if number > 3:
        x3 = with_bias(tl.load(logits + 3 * step, mask=inside, other=0.0), bias_ptr, k + 3)
    return x0, x1, x2, x3


@triton.jit
def add_classes(
    x0, x1, x2, x3, number: tl.constexpr, target, top, others, squares, with_error: tl.constexpr
):  # fmt: skip
    """Take the logits of the classes 0 to ``number`` - 1, at most four, into the sums of an online softmax.

    top = max x, others = Σ_{k≠y} e^{x_k − top}, squares = Σ_{k≠y} e^{2 (x_k − top)}; ``top`` starts from LOWEST,
    since -inf - -inf would be NaN. Classes are names and pixels the only axis: there is no
    tile whose layout Triton would have to guess, and a thread has whole pixels.
    """
    new_top = tl.maximum(top, x0)
    if number > 1:
        new_top = tl.maximum(new_top, x1)
    if number > 2:
        new_top = tl.maximum(new_top, x2)
    if number > 3:
        new_top = tl.maximum(new_top, x3)
    shrink = exp(top - new_top)
    e0 = tl.where(target == 0, 0.0, exp(x0 - new_top))
    rest = e0
    square = e0 * e0
    if number > 1:
        e1 = tl.where(target == 1, 0.0, exp(x1 - new_top))
        rest += e1
        square += e1 * e1
    if number > 2:
        e2 = tl.where(target == 2, 0.0, exp(x2 - new_top))
        rest += e2
        square += e2 * e2
    if number > 3:
        e3 = tl.where(target == 3, 0.0, exp(x3 - new_top))
        rest += e3
        square += e3 * e3
    others = others * shrink + rest
    if with_error:
        squares = squares * (shrink * shrink) + square
    return new_top, others, squares


@triton.jit
def finish(top, others, squares, own):
    """Return ℓ, p_y, 1 − p_y, ‖p − e_y‖² and log Σ e^{x_k − top} of pixels whose own logit is ``own``.

    No difference of close numbers is taken: ‖p − e_y‖² = Σ_{k≠y} p_k² + (Σ_{k≠y} p_k)², the loss is the sum of two
    numbers that are never negative, and where the own logit is the largest it is log(1 + others), not 0 until
    ``others`` is.
    """
    own_part = exp(own - top)
    total = others + own_part
    log_total = log1p(tl.where(own == top, others, total - 1.0))
    log_total = tl.where(total == 0.0, float("-inf"), log_total)  # all logits are -inf
    p = divide(own_part, total)
    missed = divide(others, total)
    return log_total + (top - own), p, missed, divide(squares, total * total) + missed * missed, log_total


@triton.jit
def of_kept(grad, kept, norm):
    """Return the gradient of pixels that count, NaN where a logit and so the norm is not finite, and 0 elsewhere."""
    return tl.where(kept, grad.to(tl.float32) + 0.0 * norm, 0.0)


@triton.jit
def delta(exponent, own, grad):
    """Return (p − [own]) · grad for p = 2^exponent. In the place of a NaN it is 2: ``grad`` is 0 then, or NaN, too."""
    return at_most(exp2(exponent), 2.0) * grad - tl.where(own, grad, 0.0)
