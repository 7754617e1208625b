"""The k-th largest of each row on CUDA, found without sorting, from the highest digit of its bits down.

The bits of a float without its sign are in the order of the floats. Each launch counts one digit of the entries whose
higher digits are known to be those of the k-th largest; a program first finds the digit before its own, in the table
that is complete by then, so that no launch is needed for that. The first launch alone reads values and labels: it
writes the bits of candidates for the others. Counts are integers, and the same whatever comes first.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from classbalance_losses.kernels.call import Hard, Labels, Share
from classbalance_losses.kernels.cuda.common import Launch, define
from classbalance_losses.kernels.cuda.device import labels as read_labels
from classbalance_losses.kernels.selection import Joined, fixed_point, infinite_bits

_DIGIT_BITS = 8  # a warp counts by votes: 2^8 bins cost 2 instructions a value, 2^11 bins 9
_DIGITS = 4
_BINS = 1 << _DIGIT_BITS
_VALUES = 4096  # of a row, for one program
_WARPS = 8
_INFINITE = tl.constexpr(infinite_bits(torch.float32))


def kth_largest(ranked: Tensor, labels: Labels, rows: int, share: Share, joined: Joined | None) -> Hard:
    """Return H: of each row's pixels that count the k with the largest values, of those that tie the part that fills k.

    Args:
        ranked: float32 (N, *). The sign does not count; NaN is larger than infinity.
        labels: Which pixels are candidates.
        rows: R, into as many parts of one size the pixels are divided.
        share: What k is.
        joined: Adds counts up over the ranks, each of which has a part of each row; ``None`` for one process.
    """
    ranked, target, ignore_index = ranked.detach(), labels.target, labels.ignore_index
    if joined is None:
        return Hard(ranked, *_KTH_LARGEST(ranked, target, ignore_index, rows, *share))
    tables, candidates = _buffers(ranked, rows)
    for level in range(_DIGITS):
        _COUNT_DIGIT(ranked, target, ignore_index, tables, candidates, level, *share)
        tables[level, :, :_BINS] = joined(tables[level, :, :_BINS])
    return Hard(ranked, *_FOUND(tables, *share))


def _buffers(ranked: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Return zeros for each digit and row, and room for bits.

    The former are for a histogram and what is known before it: the digits above, and the rest of k.
    """
    tables = torch.zeros(_DIGITS, rows, _BINS + 2, dtype=torch.int64, device=ranked.device)
    return tables, ranked.new_empty(ranked.shape, dtype=torch.int32)


def _kth_largest(
    ranked: Tensor, target: Tensor, ignore_index: int, rows: int, part: float, at_least: int
) -> tuple[Tensor, Tensor]:
    tables, candidates = _buffers(ranked, rows)
    for level in range(_DIGITS):
        _count_digit(ranked, target, ignore_index, tables, candidates, level, part, at_least)
    return _found(tables, part, at_least)


def _count_digit(
    ranked: Tensor,
    target: Tensor,
    ignore_index: int,
    tables: Tensor,
    candidates: Tensor,
    level: int,
    part: float,
    at_least: int,
) -> None:
    launch = _digit_launches(ranked.numel(), tables.shape[1], ignore_index, part, at_least)[level]
    if level:
        launch(tables, candidates, None, None)
    else:
        launch(tables, candidates, ranked.contiguous(), target.contiguous())


def _found(tables: Tensor, part: float, at_least: int) -> tuple[Tensor, Tensor]:
    bits, share = _no_digits(tables)
    _found_launch(bits.shape[0], part, at_least)(tables, bits, share)
    return bits, share


@lru_cache(maxsize=1 << 10)
def _digit_launches(entries: int, rows: int, ignore_index: int, part: float, at_least: int) -> list[Launch]:
    entries = entries // rows if rows else 0
    blocks = max(triton.cdiv(entries, _VALUES), 1)  # a row without entries has a state, too
    numbers = (rows, entries, blocks, ignore_index, *fixed_point(part), at_least)
    return [
        Launch(_digit_kernel, rows * blocks, numbers, (level, _DIGIT_BITS, _VALUES), num_warps=_WARPS)
        for level in range(_DIGITS)
    ]


@lru_cache(maxsize=1 << 10)
def _found_launch(rows: int, part: float, at_least: int) -> Launch:
    return Launch(_found_kernel, rows, (rows, *fixed_point(part), at_least), (_DIGITS, _DIGIT_BITS))


def _no_digits(tables: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    rows = tables.shape[1]
    return tables.new_empty(rows, dtype=torch.int64), tables.new_empty(rows, dtype=torch.float32)


_SHARE = "float part, int at_least"
_KTH_LARGEST = define(
    f"cuda_kth_largest(Tensor ranked, Tensor target, int ignore_index, SymInt rows, {_SHARE}) -> (Tensor, Tensor)",
    _kth_largest,
    lambda ranked, target, ignore_index, rows, *_: _no_digits(ranked.new_empty(1, rows)),
)
_COUNT_DIGIT = define(
    "cuda_count_digit(Tensor ranked, Tensor target, int ignore_index, Tensor(a!) tables, Tensor(b!) candidates, "
    f"int level, {_SHARE}) -> ()",
    _count_digit,
    lambda *_: None,
)
_FOUND = define(f"cuda_found_digits(Tensor tables, {_SHARE}) -> (Tensor, Tensor)", _found, _no_digits)


@triton.jit(do_not_specialize=["rows", "blocks", "ignore_index", "head", "tail", "shift", "at_least"])
def _digit_kernel(
    tables_ptr, candidate_ptr, value_ptr, target_ptr,
    rows, entries, blocks, ignore_index, head, tail, shift, at_least,
    level: tl.constexpr, digit_bits: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Count a digit of those entries of a row whose higher digits are the k-th largest's."""
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    part = program % blocks
    entry = part.to(tl.int64) * block + tl.arange(0, block)
    inside = entry < entries
    entry += row * entries
    bins: tl.constexpr = 1 << digit_bits
    table = tables_ptr + (level * rows + row) * (bins + 2)
    if level == 0:
        value = tl.load(value_ptr + entry, mask=inside, other=0.0)
        _, kept = read_labels(target_ptr, entry, inside, ignore_index, checked=False)
        bits = tl.where(kept & inside, value.to(tl.int32, bitcast=True) & 0x7FFFFFFF, -1)
        tl.store(candidate_ptr + entry, bits, mask=inside)
        active = bits >= 0
    else:
        bits = tl.load(candidate_ptr + entry, mask=inside, other=-1)
        prefix, rest, _ = _known(tables_ptr, rows, row, head, tail, shift, at_least, level, digit_bits)
        tl.store(table + bins, prefix, mask=part == 0)
        tl.store(table + (bins + 1), rest, mask=part == 0)
        active = (bits >> (32 - digit_bits * level)) == prefix.to(tl.int32)
    digit = (bits >> (32 - digit_bits * (level + 1))) & (bins - 1)
    # Not every Triton's histogram takes a mask: what does not count is counted as 0, and taken off again.
    count = tl.histogram(tl.where(active, digit, 0), bins).to(tl.int64)
    others = block - tl.sum(active.to(tl.int32), 0)
    every = tl.arange(0, bins)
    count = tl.where(every == 0, count - others, count)
    tl.atomic_add(table + every, count, mask=count > 0, sem="relaxed")


@triton.jit(do_not_specialize=["rows", "head", "tail", "shift", "at_least"])
def _found_kernel(
    tables_ptr, bits_ptr, share_ptr, rows, head, tail, shift, at_least,
    level: tl.constexpr, digit_bits: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    prefix, rest, tied = _known(tables_ptr, rows, row, head, tail, shift, at_least, level, digit_bits)
    some = rest > 0
    tl.store(bits_ptr + row, tl.where(some, prefix, _INFINITE))
    share = rest.to(tl.float32) / tl.maximum(tied, 1).to(tl.float32)
    tl.store(share_ptr + row, tl.where(some, share, 0.0))


@triton.jit
def _known(
    tables_ptr, rows, row, head, tail, shift, at_least, level: tl.constexpr, digit_bits: tl.constexpr
):  # fmt: skip
    """Return the first ``level`` digits of the row's k-th largest, the rest of k, and how many entries have them.

    Where k is 0, all bits are 1, as no entry's without its sign are.
    """
    bins: tl.constexpr = 1 << digit_bits
    table = tables_ptr + ((level - 1) * rows + row) * (bins + 2)
    count = tl.load(table + tl.arange(0, bins))
    valid = tl.sum(count, 0)
    if level == 1:
        prefix = tl.zeros_like(valid)
        rest = _number(valid, head, tail, shift, at_least)
    else:
        prefix = tl.load(table + bins)
        rest = tl.load(table + (bins + 1))
    from_here_up = valid - tl.cumsum(count, 0) + count
    reached = from_here_up >= rest  # by the bins from 0 to the one that is wanted
    digit = tl.sum(reached.to(tl.int32), 0) - 1
    above = tl.max(tl.where(reached, 0, from_here_up), 0)
    tied = tl.min(tl.where(reached, from_here_up, valid), 0) - above
    return (prefix << digit_bits) + digit, rest - above, tied


@triton.jit
def _number(valid, head, tail, shift, at_least):
    """Return k. The product with 53 bits is high · 2^26 + low, and half a unit in its 53rd place a power of two."""
    low = valid * tl.cast(tail, tl.int64)
    high = valid * tl.cast(head, tl.int64) + (low >> 26)
    low = low & ((1 << 26) - 1)
    powers = tl.full((64,), 1, tl.int64) << tl.arange(0, 64).to(tl.int64)
    half = tl.max(tl.where((powers > 0) & (powers <= (high >> 27)), powers, 0), 0)
    product = (high + ((low + half) >> 26)) >> tl.cast(shift, tl.int64)
    return tl.minimum(tl.maximum(product, tl.cast(at_least, tl.int64)), valid)
