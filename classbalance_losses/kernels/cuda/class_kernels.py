"""The kernels of class sums and weighted sums: tables and scalars of a map, and their gradients, which are maps."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl

from classbalance_losses.kernels.cuda.device import as_class, labels

_HALF = tl.constexpr(1 << 16)


@triton.jit
def hard_of(ranked_ptr, bits_ptr, share_ptr, pixel, inside, row):
    """Return which pixels are in H, which of these in part, and that part."""
    threshold = tl.load(bits_ptr + row).to(tl.int32)
    share = tl.load(share_ptr + row)
    bits = tl.load(ranked_ptr + pixel, mask=inside, other=0.0).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    tied = bits == tl.where(share > 0, threshold, -1)
    return (bits > threshold) | tied, tied, share


@triton.jit(do_not_specialize=["num_classes", "parts", "groups", "blocks", "ignore_index"])
def class_sums(
    target_ptr, value_ptr, squared_ptr, weight_ptr, ranked_ptr, bits_ptr, share_ptr, count_ptr, sum_ptr,
    pixels, num_classes, parts, groups, blocks, plane, ignore_index,
    group: tl.constexpr, rounds: tl.constexpr, lanes: tl.constexpr, some: tl.constexpr,
):  # fmt: skip
    """Write a part of a row's sums over a group of classes. A thread has sums of its own, of each of these."""
    program = tl.program_id(0)
    first = program % groups * group
    part = program // groups % parts
    row = (program // groups // parts).to(tl.int64)
    classes = tl.arange(0, group)[:, None]
    numbers = tl.zeros((group, lanes), tl.float32)
    values = tl.zeros((group, lanes), tl.float32)
    squares = tl.zeros((group, lanes), tl.float32)
    for block in range(part, blocks, parts):
        start = tl.cast(block, tl.int64) * (rounds * lanes)
        left = tl.minimum(pixels - start, rounds * lanes).to(tl.int32)
        start += row * pixels
        for i in tl.static_range(rounds):
            inside = tl.arange(0, lanes) + i * lanes < left
            pixel = start + i * lanes + tl.arange(0, lanes)
            label, kept = labels(target_ptr, pixel, inside, ignore_index, checked=False)
            kept = kept & inside
            number = tl.full((lanes,), 1.0, tl.float32)
            factor = tl.full((lanes,), 1.0, tl.float32)
            q = factor
            if ranked_ptr is not None:
                hard, tied, share = hard_of(ranked_ptr, bits_ptr, share_ptr, pixel, inside, row)
                kept = kept & hard
                number = tl.where(tied, some * 1.0, 1.0)
                factor = tl.where(tied, share, 1.0)
            if weight_ptr is not None:
                q = tl.load(weight_ptr + pixel, mask=inside, other=0.0).to(tl.float32)
                factor *= q
            # What is added is selected: 0 times NaN would reach every class.
            own = tl.where(kept, label.to(tl.int32) - first, group)[None, :] == classes
            numbers = tl.where(own, numbers + number[None, :], numbers)
            if value_ptr is not None:
                value = _product(tl.load(value_ptr + pixel, mask=inside, other=0.0), factor)
                values = tl.where(own, values + value[None, :], values)
            if squared_ptr is not None:
                square = _product(tl.load(squared_ptr + pixel, mask=inside, other=0.0), factor * q)
                squares = tl.where(own, squares + square[None, :], squares)

    lane = tl.arange(0, group)
    cell = (row * num_classes + first + lane) * parts + part
    exists = first + lane < num_classes
    # The two counts of a thread become the halves of an integer, in which those of all threads have room.
    both = numbers.to(tl.int32)
    both = (both & (some - 1)) + both // some * _HALF
    tl.store(count_ptr + cell, tl.sum(both, 1).to(tl.int64), mask=exists)
    if value_ptr is not None:
        tl.store(sum_ptr + cell, tl.sum(values, 1), mask=exists)
        sum_ptr += plane
    if squared_ptr is not None:
        tl.store(sum_ptr + cell, tl.sum(squares, 1), mask=exists)


@triton.jit
def _product(value, factor):
    """Return a product in which 0 times infinity is 0."""
    return tl.where((factor == 0.0) & (value == float("inf")), 0.0, value * factor)


@triton.jit(do_not_specialize=["num_classes", "parts"])
def join_classes(
    counts_ptr, sums_ptr, share_ptr, number_ptr, value_ptr, squared_ptr, num_classes, parts, plane,
    block: tl.constexpr,
):  # fmt: skip
    """Add up the parts of one row and class."""
    cell = tl.program_id(0).to(tl.int64)
    whole = tl.zeros((block,), tl.int64)
    tied = tl.zeros((block,), tl.int64)
    for first in range(0, parts, block):
        part = first + tl.arange(0, block)
        count = tl.load(counts_ptr + cell * parts + part, mask=part < parts, other=0)
        whole += count & (_HALF - 1)
        tied += count // _HALF
    number = tl.sum(whole, 0)
    if share_ptr is not None:
        share = tl.load(share_ptr + cell // num_classes)
        number = number.to(tl.float32) + share * tl.sum(tied, 0).to(tl.float32)
    tl.store(number_ptr + cell, number)
    sums_ptr += cell * parts
    if value_ptr is not None:
        tl.store(value_ptr + cell, add_up(sums_ptr, parts, block))
        sums_ptr += plane
    if squared_ptr is not None:
        tl.store(squared_ptr + cell, add_up(sums_ptr, parts, block))


@triton.jit
def add_up(ptr, number, block: tl.constexpr, step: tl.constexpr = 1):
    """Return the sum of ``number`` floats, each ``step``."""
    total = tl.zeros((block,), tl.float32)
    for first in range(0, number, block):
        part = first + tl.arange(0, block)
        total += tl.load(ptr + step * part, mask=part < number, other=0.0)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["num_classes", "blocks", "ignore_index"])
def class_slopes(
    coefficient_ptr, target_ptr, weight_ptr, ranked_ptr, bits_ptr, share_ptr, slope_ptr,
    pixels, num_classes, blocks, ignore_index, block: tl.constexpr,
):  # fmt: skip
    """Write each pixel's coefficient of its row and class, times h and q."""
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    pixel = (program % blocks).to(tl.int64) * block + tl.arange(0, block)
    inside = pixel < pixels
    pixel += row * pixels
    label, kept = labels(target_ptr, pixel, inside, ignore_index, checked=False)
    place = coefficient_ptr + row * num_classes + as_class(label, num_classes)
    slope = tl.load(place, mask=inside, other=0.0)
    if weight_ptr is not None:
        slope *= tl.load(weight_ptr + pixel, mask=inside, other=0.0).to(tl.float32)
    if ranked_ptr is not None:
        hard, tied, share = hard_of(ranked_ptr, bits_ptr, share_ptr, pixel, inside, row)
        slope = tl.where(tied, slope * share, slope)
        kept = kept & hard
    tl.store(slope_ptr + pixel, tl.where(kept, slope, 0.0), mask=inside)


@triton.jit
def _of_class(table_ptr, label, inside, num_classes):
    """Return each pixel's class's number."""
    return tl.load(table_ptr + as_class(label, num_classes), mask=inside, other=0.0).to(tl.float32)


@triton.jit
def weighted(value, kept, label, pixel, inside, weight_ptr, norm_weight_ptr, pixel_weight_ptr, num_classes):
    """Return w_y q value and w'_y of each pixel, 0 where it does not count; a weight that is not given is 1.

    Without w' these are integers, of which a warp has a sum in one instruction.
    """
    factor = tl.full(value.shape, 1.0, tl.float32)
    norm = tl.full(value.shape, 1, tl.int32)
    if weight_ptr is not None:
        factor = _of_class(weight_ptr, label, inside, num_classes)
    if norm_weight_ptr is not None:
        norm = _of_class(norm_weight_ptr, label, inside, num_classes)
    if pixel_weight_ptr is not None:
        factor *= tl.load(pixel_weight_ptr + pixel, mask=inside, other=0.0).to(tl.float32)
    return tl.where(kept, _product(value, factor), 0.0), tl.where(kept, norm, 0)


@triton.jit(do_not_specialize=["num_classes", "parts", "blocks", "ignore_index"])
def weighted_sums(
    value_ptr, target_ptr, weight_ptr, norm_weight_ptr, pixel_weight_ptr, partial_ptr,
    pixels, num_classes, parts, blocks, ignore_index, block: tl.constexpr,
):  # fmt: skip
    """Write a part of Σ w_y q value and Σ w'_y."""
    part = tl.program_id(0)
    total = tl.zeros((block,), tl.float32)
    norm = tl.zeros((block,), tl.float32)
    for at in range(part, blocks, parts):
        pixel = tl.cast(at, tl.int64) * block + tl.arange(0, block)
        inside = pixel < pixels
        label, kept = labels(target_ptr, pixel, inside, ignore_index, checked=False)
        value = tl.load(value_ptr + pixel, mask=inside, other=0.0)
        more, of_norm = weighted(
            value, kept & inside, label, pixel, inside, weight_ptr, norm_weight_ptr, pixel_weight_ptr, num_classes
        )  # fmt: skip
        total += more
        norm += of_norm
    tl.store(partial_ptr + 2 * part, tl.sum(total, 0))
    tl.store(partial_ptr + 2 * part + 1, tl.sum(norm, 0))


@triton.jit(do_not_specialize=["parts"])
def join_weighted(partial_ptr, sums_ptr, parts, block: tl.constexpr):
    """Add the parts up, and write their quotient, the sum and the norm."""
    total = add_up(partial_ptr, parts, block, 2)
    norm = add_up(partial_ptr + 1, parts, block, 2)
    tl.store(sums_ptr, total / tl.where(norm > 0, norm, 1.0))
    tl.store(sums_ptr + 1, total)
    tl.store(sums_ptr + 2, norm)


@triton.jit(do_not_specialize=["num_classes", "ignore_index"])
def weighted_slopes(
    norm_ptr, of_mean_ptr, of_total_ptr, target_ptr, weight_ptr, pixel_weight_ptr, slope_ptr,
    pixels, num_classes, ignore_index, block: tl.constexpr,
):  # fmt: skip
    """Write the gradient of weighted sums with respect to each pixel's value."""
    pixel = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = pixel < pixels
    label, kept = labels(target_ptr, pixel, inside, ignore_index, checked=False)
    slope = weighted_slope(
        norm_ptr, of_mean_ptr, of_total_ptr, label, pixel, inside, weight_ptr, pixel_weight_ptr, num_classes
    )  # fmt: skip
    tl.store(slope_ptr + pixel, tl.where(kept, slope, 0.0), mask=inside)


@triton.jit
def weighted_slope(
    norm_ptr, of_mean_ptr, of_total_ptr, label, pixel, inside, weight_ptr, pixel_weight_ptr, num_classes
):  # fmt: skip
    """Return w_y q (g / norm + g') for the gradients of the mean and of the sum, one of which may be absent.

    Without both it is w_y q.
    """
    scale = 1.0 if of_mean_ptr is None and of_total_ptr is None else 0.0
    if of_mean_ptr is not None:
        norm = tl.load(norm_ptr)
        scale += tl.load(of_mean_ptr) / tl.where(norm > 0, norm, 1.0)
    if of_total_ptr is not None:
        scale += tl.load(of_total_ptr)
    slope = tl.zeros(pixel.shape, tl.float32) + scale
    if weight_ptr is not None:
        slope *= _of_class(weight_ptr, label, inside, num_classes)
    if pixel_weight_ptr is not None:
        slope *= tl.load(pixel_weight_ptr + pixel, mask=inside, other=0.0).to(tl.float32)
    return slope
