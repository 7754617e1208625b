"""The kernels of class sums and weighted sums: what makes tables and scalars of a map, and a map of these."""
# mypy: allow-untyped-defs
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import triton
import triton.language as tl

from classbalance_losses.kernels.cuda.device import as_class, labels


@triton.jit
def _hard(ranked_ptr, bits_ptr, share_ptr, pixel, inside, row):
    """Return which pixels are in H, which of these in part, and that part."""
    threshold = tl.load(bits_ptr + row).to(tl.int32)
    share = tl.load(share_ptr + row)
    bits = tl.load(ranked_ptr + pixel, mask=inside, other=0.0).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    tied = (bits == threshold) & (share > 0)
    return (bits > threshold) | tied, tied, share


@triton.jit(do_not_specialize=["num_classes", "parts", "groups", "blocks", "plane", "ignore_index"])
def sums(
    target_ptr, value_ptr, squared_ptr, weight_ptr, ranked_ptr, bits_ptr, share_ptr, count_ptr, sum_ptr,
    pixels, num_classes, parts, groups, blocks, plane, ignore_index,
    group: tl.constexpr, rounds: tl.constexpr, lanes: tl.constexpr, some: tl.constexpr,
):  # fmt: skip
    """Write the sums of a part of a row's pixels over a group of classes. A thread has sums of its own of each class."""
    program = tl.program_id(0)
    first = program % groups * group
    part = program // groups % parts
    row = (program // groups // parts).to(tl.int64)
    classes = tl.arange(0, group)[:, None]
    number = tl.zeros((group, lanes), tl.float32)
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
            one = tl.full((lanes,), 1.0, tl.float32)
            share = one
            if ranked_ptr is not None:
                hard, tied, h = _hard(ranked_ptr, bits_ptr, share_ptr, pixel, inside, row)
                kept = kept & hard
                one = tl.where(tied, some * 1.0, 1.0)
                share = tl.where(tied, h, 1.0)
            # It is selected: 0 times NaN would reach every class.
            own = tl.where(kept, label.to(tl.int32) - first, group)[None, :] == classes
            number = tl.where(own, number + one[None, :], number)
            weight = share
            if weight_ptr is not None:
                q = tl.load(weight_ptr + pixel, mask=inside, other=0.0).to(tl.float32)
                weight = q * share
            if value_ptr is not None:
                value = tl.load(value_ptr + pixel, mask=inside, other=0.0) * weight
                values = tl.where(own, values + value[None, :], values)
            if squared_ptr is not None:
                squared = tl.load(squared_ptr + pixel, mask=inside, other=0.0) * weight
                if weight_ptr is not None:
                    squared *= q
                squares = tl.where(own, squares + squared[None, :], squares)

    exists = first + tl.arange(0, group) < num_classes
    cell = (row * num_classes + first + tl.arange(0, group)) * parts + part
    # The two counts of a thread become the halves of an integer, in which those of all threads have room.
    both = number.to(tl.int32)
    both = (both & (some - 1)) + both // some * 65536
    tl.store(count_ptr + cell, tl.sum(both, 1), mask=exists)
    if value_ptr is not None:
        tl.store(sum_ptr + cell, tl.sum(values, 1), mask=exists)
        sum_ptr += plane
    if squared_ptr is not None:
        tl.store(sum_ptr + cell, tl.sum(squares, 1), mask=exists)
