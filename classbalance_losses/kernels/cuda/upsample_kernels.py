"""The kernels of the pixel pass over enlarged logits: ``upsample`` says how they go over the pixels.

Along each axis there are ``low`` logits and ``full`` pixels. Pixel i lies at max(step · i + shift, 0) / unit.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl

from classbalance_losses.kernels.cuda.device import (
    LOG2E,
    LOWEST,
    add_classes,
    delta,
    finish,
    labels,
    of_kept,
    place,
    refuse,
    with_bias,
)
from classbalance_losses.kernels.forms.cuda import of_loss

# In the place of a weight of 0: 0 · ∞, for a class that is ruled out, would be NaN.
TINY = tl.constexpr(2.0**-60)


@triton.jit
def _grid(low, full, aligned: tl.constexpr):
    """Return step, shift and unit."""
    low = tl.cast(low, tl.int32)
    full = tl.cast(full, tl.int32)
    if aligned:
        one = (low == 1) | (full == 1)  # all of it is at the first
        return tl.where(one, 1, low - 1), 0, tl.where(one, full + 1, full - 1)
    return 2 * low, low - full, 2 * full


@triton.jit
def _start(cell, low, full, aligned: tl.constexpr):
    """Return the first full-size index of a cell, -1 to low: the first at or beyond that low-resolution index."""
    step, shift, unit = _grid(low, full, aligned)
    return tl.minimum((tl.maximum(cell * unit - shift, 0) + step - 1) // step, full)


@triton.jit
def _weight(index, cell, low, full, aligned: tl.constexpr):
    """Return the weight of the second tap of a cell's pixel. Those of an outer cell are one logit: any will do."""
    step, shift, unit = _grid(low, full, aligned)
    weight = tl.maximum((index * step + shift - cell * unit) * (1.0 / unit), TINY)
    return tl.where((cell < 0) | (cell == low - 1), 0.5, weight)


@triton.jit
def _cell(cell, low, full, aligned: tl.constexpr):
    """Return a cell's first pixel, how many there are, the first one's weight, and how much the next one's is more."""
    step, _, unit = _grid(low, full, aligned)
    start = _start(cell, low, full, aligned)
    count = _start(cell + 1, low, full, aligned) - start
    growth = tl.where((cell < 0) | (cell == low - 1), 0.0, step * (1.0 / unit))
    return start, count, _weight(start, cell, low, full, aligned), growth


@triton.jit
def _along(first, growth, i):
    """Return the weight of a cell's pixel ``i``, rounded once."""
    return tl.fma(growth, i * 1.0, first)


@triton.jit
def _taps(index, low, full, aligned: tl.constexpr):
    """Return the two low-resolution indices that a full-size one lies between, and the second's weight."""
    step, shift, unit = _grid(low, full, aligned)
    scaled = tl.maximum(index * step + shift, 0)
    first = scaled // unit
    return first, tl.minimum(first + 1, low - 1), tl.maximum((scaled - first * unit) * (1.0 / unit), TINY)


@triton.jit
def _mix(first, second, weight):
    """Interpolate. Which product is rounded is said, so that forward and backward agree to the last bit."""
    return tl.fma(weight, second, (1.0 - weight) * first)


@triton.jit
def _column(logits, mask, back, w, down, v, deep: tl.constexpr, tall: tl.constexpr):
    """Interpolate along depth and height, at the low-resolution columns that ``logits`` points to."""
    value = tl.load(logits, mask=mask, other=0.0).to(tl.float32)
    if tall:
        value = _mix(value, tl.load(logits + down, mask=mask, other=0.0).to(tl.float32), v)
    if deep:
        behind = tl.load(logits + back, mask=mask, other=0.0).to(tl.float32)
        if tall:
            behind = _mix(behind, tl.load(logits + (back + down), mask=mask, other=0.0).to(tl.float32), v)
        value = _mix(value, behind, w)
    return value


@triton.jit
def _labels(target_ptr, pixel, inside, ignore_index, num_classes, outside):
    """Return labels, whether they count, and whether one of these or those before is to be refused."""
    label, kept = labels(target_ptr, pixel, inside, ignore_index, checked=False)
    return label.to(tl.int32), kept, outside | (inside & kept & ((label < 0) | (label >= num_classes)))


@triton.jit
def _add(left, right, u, target, top, others, squares, own, with_error: tl.constexpr):
    """Take a class into the sums of one pixel of a cell."""
    x = _mix(left, right, u)
    top, others, squares = add_classes(x, x, x, x, 1, target, top, others, squares, with_error)
    return top, others, squares, tl.where(target == 0, x, own)


@triton.jit
def _give(
    value_ptr, error_ptr, lse_ptr, rest_ptr, slope_ptr, pixel, inside, kept, top, others, squares, own,
    kind: tl.constexpr, gamma,
):  # fmt: skip
    loss, p, missed, error, log_total = finish(top, others, squares, own)
    found, slope = of_loss(kind, loss, p, missed, gamma)
    lse = top + log_total
    rest = (top - lse) + log_total
    tl.store(value_ptr + pixel, tl.where(kept, found, 0.0), mask=inside)
    tl.store(lse_ptr + pixel, tl.where(kept, lse, 0.0), mask=inside)
    tl.store(rest_ptr + pixel, tl.where(kept, rest, 0.0).to(tl.float16), mask=inside)
    if slope_ptr is not None:
        tl.store(slope_ptr + pixel, tl.where(kept, slope, 0.0), mask=inside)
    if error_ptr is not None:
        tl.store(error_ptr + pixel, tl.where(kept, error, 0.0), mask=inside)


@triton.jit(do_not_specialize=["num_classes", "lanes", "blocks", "ignore_index"])
def forward(  # noqa: PLR0915 - four pixels go by name
    input_ptr, target_ptr, bias_ptr, value_ptr, error_ptr, lse_ptr, rest_ptr, slope_ptr, fits_ptr,
    num_classes, lanes, blocks, rounds, ignore_index, low_z, full_z, low_y, full_y, low_x, full_x,
    stride_n, stride_c, stride_z, stride_y, stride_x, gamma,
    kind: tl.constexpr, aligned: tl.constexpr, single: tl.constexpr, deep: tl.constexpr, tall: tl.constexpr,
    pixels: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """A lane takes up to four pixels of a cell, and all classes. Of a ``single`` logit a pixel class 0's are 0."""
    with_error: tl.constexpr = error_ptr is not None
    outer, lane, exists = place(lanes, blocks, block)
    plane = outer // rounds
    y = lane.to(tl.int32) // (low_x + 1)
    x = lane.to(tl.int32) % (low_x + 1) - 1
    z0, z1, w = _taps((plane % full_z).to(tl.int32), low_z, full_z, aligned)
    y0, y1, v = _taps(y, low_y, full_y, aligned)
    step = tl.cast(stride_c, tl.int64)
    row_step = tl.cast(stride_y, tl.int64)
    back = (z1 - z0) * tl.cast(stride_z, tl.int64)
    down = (y1 - y0) * row_step
    row = input_ptr + plane // full_z * stride_n + z0 * tl.cast(stride_z, tl.int64) + y0 * row_step
    left = row + tl.maximum(x, 0).to(tl.int64) * stride_x
    right = row + tl.minimum(x + 1, low_x - 1).to(tl.int64) * stride_x

    start, count, u, du = _cell(x, low_x, full_x, aligned)
    first = (outer % rounds).to(tl.int32) * pixels
    count = tl.where(exists, count - first, 0)
    pixel = (plane * full_y + y) * full_x + (start + first)
    zero = tl.zeros((block,), tl.float32)
    lowest = tl.full((block,), LOWEST, tl.float32)
    outside = tl.zeros((block,), tl.int32) != 0
    target0, kept0, outside = _labels(target_ptr, pixel, count > 0, ignore_index, num_classes, outside)
    top0, others0, squares0, own0 = lowest, zero, zero, zero
    if pixels > 1:
        target1, kept1, outside = _labels(
            target_ptr, pixel + 1, count > 1, ignore_index, num_classes, outside
        )
        top1, others1, squares1, own1 = lowest, zero, zero, zero
    if pixels > 2:
        target2, kept2, outside = _labels(
            target_ptr, pixel + 2, count > 2, ignore_index, num_classes, outside
        )
        top2, others2, squares2, own2 = lowest, zero, zero, zero
    if pixels > 3:
        target3, kept3, outside = _labels(
            target_ptr, pixel + 3, count > 3, ignore_index, num_classes, outside
        )
        top3, others3, squares3, own3 = lowest, zero, zero, zero
    refuse(fits_ptr, outside, 1, block)
    for k in range(num_classes):
        there = exists & (k > 0) if single else exists
        a = with_bias(_column(left, there, back, w, down, v, deep, tall), bias_ptr, k)
        b = with_bias(_column(right, there, back, w, down, v, deep, tall), bias_ptr, k)
        top0, others0, squares0, own0 = _add(
            a, b, _along(u, du, first), target0 - k, top0, others0, squares0, own0, with_error
        )
        if pixels > 1:
            top1, others1, squares1, own1 = _add(
                a, b, _along(u, du, first + 1), target1 - k, top1, others1, squares1, own1, with_error
            )
        if pixels > 2:
            top2, others2, squares2, own2 = _add(
                a, b, _along(u, du, first + 2), target2 - k, top2, others2, squares2, own2, with_error
            )
        if pixels > 3:
            top3, others3, squares3, own3 = _add(
                a, b, _along(u, du, first + 3), target3 - k, top3, others3, squares3, own3, with_error
            )
        if not single:
            left += step
            right += step
    _give(
        value_ptr, error_ptr, lse_ptr, rest_ptr, slope_ptr, pixel, count > 0, kept0,
        top0, others0, squares0, own0, kind, gamma,
    )  # fmt: skip
    if pixels > 1:
        _give(
            value_ptr, error_ptr, lse_ptr, rest_ptr, slope_ptr, pixel + 1, count > 1, kept1,
            top1, others1, squares1, own1, kind, gamma,
        )  # fmt: skip
    if pixels > 2:
        _give(
            value_ptr, error_ptr, lse_ptr, rest_ptr, slope_ptr, pixel + 2, count > 2, kept2,
            top2, others2, squares2, own2, kind, gamma,
        )  # fmt: skip
    if pixels > 3:
        _give(
            value_ptr, error_ptr, lse_ptr, rest_ptr, slope_ptr, pixel + 3, count > 3, kept3,
            top3, others3, squares3, own3, kind, gamma,
        )  # fmt: skip


@triton.jit
def _row(logits, column, step1, step2, step3, mask, back, w, deep: tl.constexpr):
    """Return four classes' logits at a row of columns."""
    return (
        _column(logits + column, mask, back, w, 0, 0.0, deep, False),
        _column(logits + step1 + column, mask, back, w, 0, 0.0, deep, False),
        _column(logits + step2 + column, mask, back, w, 0, 0.0, deep, False),
        _column(logits + step3 + column, mask, back, w, 0, 0.0, deep, False),
    )


@triton.jit
def _mix_row(a0, a1, a2, a3, b0, b1, b2, b3, v):
    return _mix(a0, b0, v), _mix(a1, b1, v), _mix(a2, b2, v), _mix(a3, b3, v)


@triton.jit
def _with_biases(x0, x1, x2, x3, bias_ptr, first, others):
    """Return the logits of four classes from ``first`` on, those that exist, with their biases."""
    if bias_ptr is not None:
        x0 = with_bias(x0, bias_ptr, first)
        x1 = with_bias(x1, bias_ptr, first + tl.minimum(others, 1))
        x2 = with_bias(x2, bias_ptr, first + tl.minimum(others, 2))
        x3 = with_bias(x3, bias_ptr, first + tl.minimum(others, 3))
    return x0, x1, x2, x3


@triton.jit
def _add_pixel(
    a0, a1, a2, a3, b0, b1, b2, b3, u, share, first, pixel, inside, sum0, sum1, sum2, sum3,
    grad_ptr, target_ptr, lse_ptr, rest_ptr, slope_ptr, ignore_index,
):  # fmt: skip
    """Add share · g · (p − [y = k]) of one pixel, for four classes of logits a to its left and b to its right."""
    label, kept = labels(target_ptr, pixel, inside, ignore_index, checked=True)
    lse = tl.load(lse_ptr + pixel, mask=inside, other=0.0)
    rest = tl.load(rest_ptr + pixel, mask=inside, other=0.0).to(tl.float32) * LOG2E
    grad = share * of_kept(tl.load(grad_ptr + pixel, mask=inside, other=0.0), kept, lse)
    if slope_ptr is not None:
        grad *= tl.load(slope_ptr + pixel, mask=inside, other=0.0)
    x0, x1, x2, x3 = _mix_row(a0, a1, a2, a3, b0, b1, b2, b3, u)
    own = label.to(tl.int32) - first
    sum0 += delta((x0 - lse) * LOG2E - rest, own == 0, grad)
    sum1 += delta((x1 - lse) * LOG2E - rest, own == 1, grad)
    sum2 += delta((x2 - lse) * LOG2E - rest, own == 2, grad)
    sum3 += delta((x3 - lse) * LOG2E - rest, own == 3, grad)
    return sum0, sum1, sum2, sum3


@triton.jit(do_not_specialize=["num_classes", "chunks", "blocks", "strips", "ignore_index"])
def backward(  # noqa: PLR0915 - four classes go by name
    grad_ptr, input_ptr, target_ptr, bias_ptr, lse_ptr, rest_ptr, slope_ptr, output_ptr,
    num_classes, chunks, blocks, strips, rounds, ignore_index, low_z, full_z, low_y, full_y, low_x, full_x,
    stride_n, stride_c, stride_z, stride_y, stride_x,
    out_stride_n, out_stride_c, out_stride_z, out_stride_y, out_stride_x,
    aligned: tl.constexpr, single: tl.constexpr, deep: tl.constexpr,
    strip: tl.constexpr, pixels: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """A lane takes a column of a strip of rows, and four classes, or of a ``single`` logit a pixel class 1."""
    # Programs of the same pixels follow each other: what they share is in the cache.
    program = tl.program_id(0)
    channel = program % chunks * 4
    first = channel + single
    others = num_classes - 1 - first  # classes after the first
    program = program // chunks
    x = program % blocks * block + tl.arange(0, block)
    exists = x < low_x
    program = program // blocks
    first_row = program % strips * strip
    own_z = program // strips % low_z
    n = (program // strips // low_z).to(tl.int64)

    image = input_ptr + n * stride_n + channel.to(tl.int64) * stride_c
    left = tl.maximum(x - 1, 0).to(tl.int64) * stride_x
    centre = x.to(tl.int64) * stride_x
    right = tl.minimum(x + 1, low_x - 1).to(tl.int64) * stride_x
    step1 = tl.minimum(others, 1) * tl.cast(stride_c, tl.int64)
    step2 = tl.minimum(others, 2) * tl.cast(stride_c, tl.int64)
    step3 = tl.minimum(others, 3) * tl.cast(stride_c, tl.int64)
    row_step = tl.cast(stride_y, tl.int64)
    plane_step = tl.cast(stride_z, tl.int64)
    # The cells to the left and to the right: their pixels, and this column's share of them.
    start_a, count_a, u_a, du_a = _cell(x - 1, low_x, full_x, aligned)
    start_b, count_b, u_b, du_b = _cell(x, low_x, full_x, aligned)
    share_a = tl.where(x == 0, 1.0, u_a)
    share_b = tl.where(x == low_x - 1, 1.0, 1.0 - u_b)
    start_z = _start(own_z - 1, low_z, full_z, aligned)
    middle_z = _start(own_z, low_z, full_z, aligned)
    stop_z = _start(own_z + 1, low_z, full_z, aligned)
    count_a = tl.where(exists, count_a, 0)
    count_b = tl.where(exists, count_b, 0)

    output = output_ptr + n * out_stride_n + channel.to(tl.int64) * out_stride_c
    output += own_z.to(tl.int64) * out_stride_z + x.to(tl.int64) * out_stride_x
    zero = tl.zeros((block,), tl.float32)
    next0, next1, next2, next3 = zero, zero, zero, zero
    for at in range(first_row - 1, tl.minimum(first_row + strip, low_y)):
        row = tl.cast(at, tl.int32)  # which is a number to an interpreter
        this0, this1, this2, this3 = next0, next1, next2, next3
        next0, next1, next2, next3 = zero, zero, zero, zero
        above = tl.maximum(row, 0) * row_step
        below = tl.minimum(row + 1, low_y - 1) * row_step
        start_y = _start(row, low_y, full_y, aligned)
        stop_y = _start(row + 1, low_y, full_y, aligned)
        for z in range(start_z, stop_z):
            cell_z = tl.where(z < middle_z, own_z - 1, own_z)
            w = _weight(z, cell_z, low_z, full_z, aligned)
            share_z = tl.where(
                (cell_z < 0) | (cell_z == low_z - 1), 1.0, tl.where(cell_z < own_z, w, 1.0 - w)
            )
            at_z = tl.maximum(cell_z, 0) * plane_step
            back = tl.minimum(cell_z + 1, low_z - 1) * plane_step - at_z
            a0, a1, a2, a3 = _row(image + (at_z + above), left, step1, step2, step3, exists, back, w, deep)
            b0, b1, b2, b3 = _row(image + (at_z + above), centre, step1, step2, step3, exists, back, w, deep)
            c0, c1, c2, c3 = _row(image + (at_z + above), right, step1, step2, step3, exists, back, w, deep)
            d0, d1, d2, d3 = _row(image + (at_z + below), left, step1, step2, step3, exists, back, w, deep)
            e0, e1, e2, e3 = _row(image + (at_z + below), centre, step1, step2, step3, exists, back, w, deep)
            f0, f1, f2, f3 = _row(image + (at_z + below), right, step1, step2, step3, exists, back, w, deep)
            for y in range(start_y, stop_y):
                v = _weight(y, row, low_y, full_y, aligned)
                lower = tl.where(row < 0, 1.0, tl.where(row == low_y - 1, 0.0, v))
                l0, l1, l2, l3 = _mix_row(a0, a1, a2, a3, d0, d1, d2, d3, v)
                m0, m1, m2, m3 = _mix_row(b0, b1, b2, b3, e0, e1, e2, e3, v)
                r0, r1, r2, r3 = _mix_row(c0, c1, c2, c3, f0, f1, f2, f3, v)
                l0, l1, l2, l3 = _with_biases(l0, l1, l2, l3, bias_ptr, first, others)
                m0, m1, m2, m3 = _with_biases(m0, m1, m2, m3, bias_ptr, first, others)
                r0, r1, r2, r3 = _with_biases(r0, r1, r2, r3, bias_ptr, first, others)
                line = ((n * full_z + z) * full_y + y) * full_x
                sum0, sum1, sum2, sum3 = zero, zero, zero, zero
                for start in range(0, rounds * pixels, pixels):
                    for j in tl.static_range(pixels):
                        i = start + j
                        sum0, sum1, sum2, sum3 = _add_pixel(
                            l0, l1, l2, l3, m0, m1, m2, m3, _along(u_a, du_a, i), share_a + i * du_a,
                            first, line + start_a + i, i < count_a, sum0, sum1, sum2, sum3,
                            grad_ptr, target_ptr, lse_ptr, rest_ptr, slope_ptr, ignore_index,
                        )  # fmt: skip
                        sum0, sum1, sum2, sum3 = _add_pixel(
                            m0, m1, m2, m3, r0, r1, r2, r3, _along(u_b, du_b, i), share_b - i * du_b,
                            first, line + start_b + i, i < count_b, sum0, sum1, sum2, sum3,
                            grad_ptr, target_ptr, lse_ptr, rest_ptr, slope_ptr, ignore_index,
                        )  # fmt: skip
                near = share_z * (1.0 - lower)
                far = share_z * lower
                this0, next0 = this0 + near * sum0, next0 + far * sum0
                this1, next1 = this1 + near * sum1, next1 + far * sum1
                this2, next2 = this2 + near * sum2, next2 + far * sum2
                this3, next3 = this3 + near * sum3, next3 + far * sum3
        if row >= first_row:
            to = output + row * tl.cast(out_stride_y, tl.int64)
            _put(to, this0, exists)
            if not single:
                if others >= 1:
                    _put(to + 1 * tl.cast(out_stride_c, tl.int64), this1, exists)
                if others >= 2:
                    _put(to + 2 * tl.cast(out_stride_c, tl.int64), this2, exists)
                if others >= 3:
                    _put(to + 3 * tl.cast(out_stride_c, tl.int64), this3, exists)


@triton.jit
def _put(to, values, mask):
    tl.store(to, values.to(to.dtype.element_ty), mask=mask)
