r"""Sums over the pixels of each class on CUDA, and their gradient, in one pass over the maps each.

A warp takes a part of a row's pixels and eight classes, each with sums of its own in every thread: nothing crosses
threads before the end. The parts are added up by a second kernel. Each sum has one order, whatever comes first.

Where a threshold is given, only the pixels of H count (see `classbalance_losses.ops.mining`): those whose ranked value
is above it, and those at it with h, the row's share of them. A row is a part of the pixels with one threshold, such as
an image.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from classbalance_losses.kernels.triton_common import OPTIONS, bytes_of, on_device_of
from classbalance_losses.kernels.triton_library import define

__all__ = ["ClassSums", "Hard", "checked_labels", "class_sums"]

_GROUP = 8  # classes of a program, by name
_ROUNDS = 8  # pixels whose loads a thread starts before it needs the first
_LANES = 32
_PARTS = 1024  # fixed: as many partial sums on every device
_ADDED = 256  # pixels that a thread adds up one after the other, at most
_PIXELS = 1024  # of a program that writes a map
_SOME = 1 << 12  # a thread counts in one float: a pixel as 1, one that is in H in part as this


class Hard(NamedTuple):
    """Which pixels count, and in which part: see `triton_select.kth_largest`."""

    ranked: Tensor | None = None
    """What is compared with the threshold, float32 (N, *)."""
    bits: Tensor | None = None
    """The threshold's bits (R,)."""
    share: Tensor | None = None
    """h (R,)."""


class ClassSums(NamedTuple):
    """Sums over the pixels of each row and class, (R, C)."""

    number: Tensor
    """How many, in int64; with a threshold Σ h_i in float32."""
    value: Tensor
    """Σ h_i q_i value_i, with its gradient."""
    squared: Tensor
    """Σ h_i q_i² squared_i."""


def class_sums(
    target: Tensor,
    keep: Tensor,
    num_classes: int,
    value: Tensor | None = None,
    squared: Tensor | None = None,
    weight: Tensor | None = None,
    *,
    rows: int = 1,
    hard: Hard = Hard(),  # noqa: B008 - it is constant
) -> ClassSums:
    """Return the sums of the maps (N, *) that are given over the kept pixels of each row and class.

    Args:
        target: Class indices (N, *) of any integer type.
        keep: Which pixels count, bool (N, *). What others hold does not matter.
        num_classes: C.
        value: float32.
        squared: float32, a second map to be summed, without a gradient.
        weight: q, float32, or ``None`` for 1.
        rows: R, into as many parts of one size the pixels are divided. Those of ``hard`` are as many.
        hard: The threshold, if there is one.
    """
    maps = (target, keep, num_classes, rows, value, squared, weight, *hard)
    if value is None or not value.requires_grad:
        return ClassSums(*torch.ops.classbalance_losses.class_table(*maps))
    return ClassSums(*_Sums.apply(*maps))  # type: ignore[no-untyped-call]


def checked_labels(target: Tensor, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return which labels are not ``ignore_index``, bool (N, *), and whether all of these are classes, bool ()."""
    both: tuple[Tensor, Tensor] = torch.ops.classbalance_losses.checked_labels(
        target, num_classes, ignore_index
    )
    return both


class _Sums(torch.autograd.Function):
    """Class sums, of which those of ``value`` have a gradient: linear, and so is it."""

    @staticmethod
    def forward(
        ctx: Any,
        target: Tensor,
        keep: Tensor,
        num_classes: int,
        rows: int,
        value: Tensor | None,
        squared: Tensor | None,
        weight: Tensor | None,
        *hard: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        sums: tuple[Tensor, Tensor, Tensor] = torch.ops.classbalance_losses.class_table(
            target, keep, num_classes, rows, value, squared, weight, *hard
        )
        ctx.mark_non_differentiable(sums[0], sums[2])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(target, keep, weight, *hard)
        return sums

    @staticmethod
    def backward(
        ctx: Any, _: Tensor | None, grad: Tensor | None, *__: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        gradient = None if grad is None else _Spread.apply(grad, *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return None, None, None, None, gradient, *[None] * 5


class _Spread(torch.autograd.Function):
    """Give each pixel its class's coefficient: the gradient of class sums, whose gradient they are."""

    @staticmethod
    def forward(
        ctx: Any,
        coefficient: Tensor,
        target: Tensor,
        keep: Tensor,
        weight: Tensor | None,
        *hard: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(target, keep, weight, *hard)
        ctx.shape = coefficient.shape
        spread: Tensor = torch.ops.classbalance_losses.spread(coefficient, target, keep, weight, *hard)
        return spread

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        target, keep, weight, *hard = ctx.saved_tensors
        rows, num_classes = ctx.shape
        sums = class_sums(target, keep, num_classes, grad, None, weight, rows=rows, hard=Hard(*hard))
        return sums.value, *[None] * 6


def _class_table(
    target: Tensor,
    keep: Tensor,
    num_classes: int,
    rows: int,
    value: Tensor | None,
    squared: Tensor | None,
    weight: Tensor | None,
    ranked: Tensor | None,
    bits: Tensor | None,
    share: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _class_tables(target, keep, num_classes, rows, value, squared, weight, ranked, bits, share)
    pixels = target.numel() // rows if rows else 0
    cells = rows * num_classes
    if not pixels * cells:
        for output in outputs:
            output.zero_()
        return outputs
    blocks = triton.cdiv(pixels, _LANES * _ROUNDS)
    parts = min(blocks, max(_PARTS // rows, triton.cdiv(pixels, _LANES * _ADDED)))
    groups = triton.cdiv(num_classes, _GROUP)
    maps = (value is not None) + (squared is not None)
    counts = torch.empty(cells, parts, dtype=torch.int32, device=target.device)
    sums = torch.empty(maps, cells, parts, dtype=torch.float32, device=target.device)
    with on_device_of(target):
        _class_kernel[(rows * parts * groups,)](
            target.contiguous(),
            bytes_of(keep),
            _read(value),
            _read(squared),
            _read(weight),
            _read(ranked),
            bits,
            share,
            counts,
            sums,
            pixels,
            num_classes,
            parts,
            groups,
            blocks,
            cells * parts,
            group=_GROUP,
            rounds=_ROUNDS,
            lanes=_LANES,
            some=_SOME,
            num_warps=1,
            **OPTIONS,
        )
        _join_kernel[(cells,)](
            counts,
            sums,
            share,
            *outputs,
            num_classes,
            parts,
            cells * parts,
            with_value=value is not None,
            with_squared=squared is not None,
            block=_PARTS,
            **OPTIONS,
        )
    return outputs


def _class_tables(
    target: Tensor,
    keep: Tensor,
    num_classes: int,
    rows: int,
    value: Tensor | None,
    squared: Tensor | None,
    weight: Tensor | None,
    ranked: Tensor | None,
    bits: Tensor | None,
    share: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    def table(dtype: torch.dtype, wanted: bool = True) -> Tensor:
        return torch.empty(rows if wanted else 0, num_classes, dtype=dtype, device=target.device)

    count = table(torch.int64 if bits is None else torch.float32)
    return count, table(torch.float32, value is not None), table(torch.float32, squared is not None)


def _spread(
    coefficient: Tensor,
    target: Tensor,
    keep: Tensor,
    weight: Tensor | None,
    ranked: Tensor | None,
    bits: Tensor | None,
    share: Tensor | None,
) -> Tensor:
    output = _map(coefficient, target)
    rows, num_classes = coefficient.shape
    if not output.numel():
        return output
    pixels = target.numel() // rows
    blocks = triton.cdiv(pixels, _PIXELS)
    with on_device_of(target):
        _spread_kernel[(rows * blocks,)](
            coefficient.contiguous(),
            target.contiguous(),
            bytes_of(keep),
            _read(weight),
            _read(ranked),
            bits,
            share,
            output,
            pixels,
            num_classes,
            blocks,
            block=_PIXELS,
            **OPTIONS,
        )
    return output


def _map(coefficient: Tensor, target: Tensor, *_: object) -> Tensor:
    return torch.empty(target.shape, dtype=torch.float32, device=target.device)


def _checked_labels(target: Tensor, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    keep = torch.empty(target.shape, dtype=torch.bool, device=target.device)
    fits = torch.ones((), dtype=torch.bool, device=target.device)
    if target.numel():
        with on_device_of(target):
            _label_kernel[(triton.cdiv(target.numel(), _PIXELS),)](
                target.contiguous(),
                keep.view(torch.uint8),
                fits.view(torch.uint8),
                target.numel(),
                num_classes,
                ignore_index,
                block=_PIXELS,
                **OPTIONS,
            )
    return keep, fits


def _bools(target: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    keep = torch.empty(target.shape, dtype=torch.bool, device=target.device)
    return keep, torch.empty((), dtype=torch.bool, device=target.device)


def _read(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.contiguous()


_HARD = "Tensor? ranked, Tensor? bits, Tensor? share"
define(
    "class_table(Tensor target, Tensor keep, int num_classes, int rows, Tensor? value, Tensor? squared, "
    f"Tensor? weight, {_HARD}) -> (Tensor, Tensor, Tensor)",
    _class_table,
    _class_tables,
)
define(
    f"spread(Tensor coefficient, Tensor target, Tensor keep, Tensor? weight, {_HARD}) -> Tensor",
    _spread,
    _map,
)
define(
    "checked_labels(Tensor target, int num_classes, int ignore_index) -> (Tensor, Tensor)",
    _checked_labels,
    _bools,
)


@triton.jit(do_not_specialize=["num_classes", "parts", "groups", "blocks"])
def _class_kernel(
    target_ptr: tl.tensor,
    keep_ptr: tl.tensor,
    value_ptr: tl.tensor,
    squared_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    ranked_ptr: tl.tensor,
    bits_ptr: tl.tensor,
    share_ptr: tl.tensor,
    count_ptr: tl.tensor,
    sum_ptr: tl.tensor,
    pixels: tl.tensor,
    num_classes: tl.tensor,
    parts: tl.tensor,
    groups: tl.tensor,
    blocks: tl.tensor,
    plane: tl.tensor,
    group: tl.constexpr,
    rounds: tl.constexpr,
    lanes: tl.constexpr,
    some: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    first = program % groups * group
    part = program // groups % parts
    row = (program // groups // parts).to(tl.int64)
    threshold, tie, share = _threshold(bits_ptr, share_ptr, row)
    n0, n1, n2, n3, n4, n5, n6, n7 = _nothing(lanes)
    v0, v1, v2, v3, v4, v5, v6, v7 = _nothing(lanes)
    e0, e1, e2, e3, e4, e5, e6, e7 = _nothing(lanes)
    for block in range(part, blocks, parts):
        start = tl.cast(block, tl.int64) * (rounds * lanes)
        left = tl.minimum(pixels - start, rounds * lanes).to(tl.int32)
        start += row * pixels
        for i in tl.static_range(rounds):
            inside = tl.arange(0, lanes) + i * lanes < left
            pixel = start + i * lanes + tl.arange(0, lanes)
            kept = tl.load(keep_ptr + pixel, mask=inside, other=0) != 0
            own = tl.load(target_ptr + pixel, mask=inside, other=0).to(tl.int32) - first
            tied = kept != kept  # noqa: PLR0124 - none is
            if ranked_ptr is not None:
                bits = _bits(tl.load(ranked_ptr + pixel, mask=inside, other=0.0))
                tied = bits == tie
                kept = kept & ((bits > threshold) | tied)
            own = tl.where(kept, own, group)
            number = tl.where(tied, some * 1.0, 1.0)
            n0, n1, n2, n3, n4, n5, n6, n7 = _add(own, number, n0, n1, n2, n3, n4, n5, n6, n7)
            if weight_ptr is not None:
                weight = tl.load(weight_ptr + pixel, mask=inside, other=0.0)
            if value_ptr is not None:
                value = tl.load(value_ptr + pixel, mask=inside, other=0.0)
                if weight_ptr is not None:
                    value *= weight
                value = tl.where(tied, value * share, value)
                v0, v1, v2, v3, v4, v5, v6, v7 = _add(own, value, v0, v1, v2, v3, v4, v5, v6, v7)
            if squared_ptr is not None:
                squared = tl.load(squared_ptr + pixel, mask=inside, other=0.0)
                if weight_ptr is not None:
                    squared *= weight * weight
                squared = tl.where(tied, squared * share, squared)
                e0, e1, e2, e3, e4, e5, e6, e7 = _add(own, squared, e0, e1, e2, e3, e4, e5, e6, e7)

    classes = num_classes - first
    step = tl.cast(parts, tl.int64)
    cell = (row * num_classes + first) * step + part
    n0, n1, n2, n3 = _pair(n0, some), _pair(n1, some), _pair(n2, some), _pair(n3, some)
    n4, n5, n6, n7 = _pair(n4, some), _pair(n5, some), _pair(n6, some), _pair(n7, some)
    _put(n0, n1, n2, n3, n4, n5, n6, n7, count_ptr + cell, step, classes)
    if value_ptr is not None:
        _put(v0, v1, v2, v3, v4, v5, v6, v7, sum_ptr + cell, step, classes)
        sum_ptr += plane
    if squared_ptr is not None:
        _put(e0, e1, e2, e3, e4, e5, e6, e7, sum_ptr + cell, step, classes)


@triton.jit
def _threshold(bits_ptr: tl.tensor, share_ptr: tl.tensor, row: tl.tensor) -> tl.tensor:
    """Return the bits that a row's pixels of H are above, those that they may equal, and h; -1 where none may."""
    threshold = 0
    tie = 0
    share = 1.0
    if bits_ptr is not None:
        threshold = tl.load(bits_ptr + row)
        share = tl.load(share_ptr + row)
        tie = tl.where(share > 0, threshold, -1)
    return threshold, tie, share


@triton.jit
def _bits(value: tl.tensor) -> tl.tensor:
    return value.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _pair(number: tl.tensor, some: tl.constexpr) -> tl.tensor:
    """Return the two counts of a thread as the halves of an integer, in which those of all threads have room."""
    number = number.to(tl.int32)
    return (number & (some - 1)) + number // some * 65536


@triton.jit
def _nothing(lanes: tl.constexpr) -> tl.tensor:
    zero = tl.zeros((lanes,), tl.float32)
    return zero, zero, zero, zero, zero, zero, zero, zero


@triton.jit
def _add(
    own: tl.tensor,
    value: tl.tensor,
    t0: tl.tensor,
    t1: tl.tensor,
    t2: tl.tensor,
    t3: tl.tensor,
    t4: tl.tensor,
    t5: tl.tensor,
    t6: tl.tensor,
    t7: tl.tensor,
) -> tl.tensor:
    """Add a value to the sum of its class. It is selected: 0 times NaN would reach every class."""
    t0 = tl.where(own == 0, t0 + value, t0)
    t1 = tl.where(own == 1, t1 + value, t1)
    t2 = tl.where(own == 2, t2 + value, t2)
    t3 = tl.where(own == 3, t3 + value, t3)
    t4 = tl.where(own == 4, t4 + value, t4)
    t5 = tl.where(own == 5, t5 + value, t5)
    t6 = tl.where(own == 6, t6 + value, t6)
    t7 = tl.where(own == 7, t7 + value, t7)
    return t0, t1, t2, t3, t4, t5, t6, t7


@triton.jit
def _put(
    t0: tl.tensor,
    t1: tl.tensor,
    t2: tl.tensor,
    t3: tl.tensor,
    t4: tl.tensor,
    t5: tl.tensor,
    t6: tl.tensor,
    t7: tl.tensor,
    ptr: tl.tensor,
    step: tl.tensor,
    left: tl.tensor,
) -> None:
    """Write the sums over all threads of the classes that there are."""
    tl.store(ptr, tl.sum(t0, 0))
    tl.store(ptr + step, tl.sum(t1, 0), mask=left > 1)
    tl.store(ptr + 2 * step, tl.sum(t2, 0), mask=left > 2)
    tl.store(ptr + 3 * step, tl.sum(t3, 0), mask=left > 3)
    tl.store(ptr + 4 * step, tl.sum(t4, 0), mask=left > 4)
    tl.store(ptr + 5 * step, tl.sum(t5, 0), mask=left > 5)
    tl.store(ptr + 6 * step, tl.sum(t6, 0), mask=left > 6)
    tl.store(ptr + 7 * step, tl.sum(t7, 0), mask=left > 7)


@triton.jit(do_not_specialize=["num_classes", "parts", "plane"])
def _join_kernel(
    counts_ptr: tl.tensor,
    sums_ptr: tl.tensor,
    share_ptr: tl.tensor,
    count_ptr: tl.tensor,
    value_ptr: tl.tensor,
    squared_ptr: tl.tensor,
    num_classes: tl.tensor,
    parts: tl.tensor,
    plane: tl.tensor,
    with_value: tl.constexpr,
    with_squared: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Add up the parts of one row and class."""
    cell = tl.program_id(0).to(tl.int64)
    start = cell * parts
    whole = tl.zeros((block,), tl.int64)
    tied = tl.zeros((block,), tl.int64)
    value = tl.zeros((block,), tl.float32)
    squared = tl.zeros((block,), tl.float32)
    for first in range(0, parts, block):
        part = first + tl.arange(0, block)
        inside = part < parts
        part += start
        count = tl.load(counts_ptr + part, mask=inside, other=0)
        whole += count & 65535
        tied += count // 65536
        if with_value:
            value += tl.load(sums_ptr + part, mask=inside, other=0.0)
        if with_squared:
            last = part + plane if with_value else part
            squared += tl.load(sums_ptr + last, mask=inside, other=0.0)
    if share_ptr is not None:
        share = tl.load(share_ptr + cell // num_classes)
        count = tl.sum(whole, 0).to(tl.float32) + share * tl.sum(tied, 0).to(tl.float32)
        tl.store(count_ptr + cell, count)
    else:
        tl.store(count_ptr + cell, tl.sum(whole, 0))
    if with_value:
        tl.store(value_ptr + cell, tl.sum(value, 0))
    if with_squared:
        tl.store(squared_ptr + cell, tl.sum(squared, 0))


@triton.jit(do_not_specialize=["num_classes", "blocks"])
def _spread_kernel(
    coefficient_ptr: tl.tensor,
    target_ptr: tl.tensor,
    keep_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    ranked_ptr: tl.tensor,
    bits_ptr: tl.tensor,
    share_ptr: tl.tensor,
    output_ptr: tl.tensor,
    pixels: tl.tensor,
    num_classes: tl.tensor,
    blocks: tl.tensor,
    block: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    pixel = (program % blocks).to(tl.int64) * block + tl.arange(0, block)
    inside = pixel < pixels
    pixel += row * pixels
    kept = tl.load(keep_ptr + pixel, mask=inside, other=0) != 0
    target = tl.load(target_ptr + pixel, mask=inside, other=0).to(tl.int32)
    target = tl.minimum(tl.maximum(target, 0), num_classes - 1)  # one that is about to be refused, too
    spread = tl.load(coefficient_ptr + row * num_classes + target, mask=inside, other=0.0)
    if weight_ptr is not None:
        spread *= tl.load(weight_ptr + pixel, mask=inside, other=0.0)
    if ranked_ptr is not None:
        threshold, tie, share = _threshold(bits_ptr, share_ptr, row)
        bits = _bits(tl.load(ranked_ptr + pixel, mask=inside, other=0.0))
        spread = tl.where(bits == tie, spread * share, spread)
        kept = kept & ((bits > threshold) | (bits == tie))
    tl.store(output_ptr + pixel, tl.where(kept, spread, 0.0), mask=inside)


@triton.jit(do_not_specialize=["num_classes", "ignore_index"])
def _label_kernel(
    target_ptr: tl.tensor,
    keep_ptr: tl.tensor,
    fits_ptr: tl.tensor,
    pixels: tl.tensor,
    num_classes: tl.tensor,
    ignore_index: tl.tensor,
    block: tl.constexpr,
) -> None:
    pixel = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = pixel < pixels
    label = tl.load(target_ptr + pixel, mask=inside, other=0).to(tl.int64)
    kept = label != tl.cast(ignore_index, tl.int64)
    outside = kept & ((label < 0) | (label >= num_classes))
    tl.store(keep_ptr + pixel, kept.to(tl.uint8), mask=inside)
    # Whoever finds one says so, and all say the same.
    tl.store(fits_ptr + tl.zeros((block,), tl.int32), tl.zeros((block,), tl.uint8), mask=inside & outside)
