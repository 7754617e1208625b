"""The k-th largest of each row on CUDA, found without sorting, from the highest digit of its bits down.

The bits of a float without its sign are in the order of the floats. Each launch counts one digit of the entries whose
higher digits are known to be those of the k-th largest; a program first finds the digit before its own, in the table
that is complete by then, so that no launch is needed for that. Counts are integers, and the same whatever comes first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from classbalance_losses.kernels.triton_common import OPTIONS, bytes_of, on_device_of
from classbalance_losses.kernels.triton_library import define

__all__ = ["Share", "kth_largest", "kth_largest_of_ranks"]

_DIGIT_BITS = 8  # a warp counts by votes: 2^8 bins cost 2 instructions a value, 2^11 bins 9
_DIGITS = 4
_VALUES = 4096  # of a row, for one program
_VALUE_WARPS = 8


class Share(NamedTuple):
    """k = max(at_least, floor(part · valid)), at most valid, for part = (head · 2^26 + tail) / 2^(26 + shift).

    The product is rounded as float64 rounds it, but in whole numbers.
    """

    head: int
    tail: int
    shift: int
    at_least: int


def kth_largest(value: Tensor, keep: Tensor, share: Share) -> tuple[Tensor, Tensor]:
    """Return what tells the k largest of the kept entries of each row, the last of them by shares.

    Args:
        value: float32 (R, P). The sign does not count; NaN is larger than infinity.
        keep: Which entries are candidates, bool (R, P).
        share: What k is.

    Returns:
        The bits of the k-th largest without a sign, int32 (R,), and h, float32 (R,): entries above are among the k
        largest, and of those that equal it the part h. Where k is 0, the largest integer and 0.
    """
    found: tuple[Tensor, Tensor] = torch.ops.classbalance_losses.kth_largest(value, keep, *share)
    return found


def kth_largest_of_ranks(
    value: Tensor, keep: Tensor, share: Share, joined: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the same for rows of which each rank has a part; ``joined`` adds tables (R, 256) up over the ranks."""
    ops = torch.ops.classbalance_losses
    tables, states = _tables(value.shape[0], value.device)
    for level in range(_DIGITS):
        ops.count_digit(value, keep, tables, states, level, *share)
        tables[level] = joined(tables[level])
    found: tuple[Tensor, Tensor] = ops.found_digits(tables, states, *share)
    return found


def _tables(rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return a histogram for each digit and row, and for each what is known before it: (prefix, rest of k)."""
    tables = torch.zeros(_DIGITS, rows, 1 << _DIGIT_BITS, dtype=torch.int64, device=device)
    return tables, torch.empty(_DIGITS, rows, 2, dtype=torch.int64, device=device)


def _kth_largest(
    value: Tensor, keep: Tensor, head: int, tail: int, shift: int, at_least: int
) -> tuple[Tensor, Tensor]:
    value, keep = value.contiguous(), keep.contiguous()
    tables, states = _tables(value.shape[0], value.device)
    for level in range(_DIGITS):
        _count_digit(value, keep, tables, states, level, head, tail, shift, at_least)
    return _found_digits(tables, states, head, tail, shift, at_least)


def _count_digit(
    value: Tensor,
    keep: Tensor,
    tables: Tensor,
    states: Tensor,
    level: int,
    head: int,
    tail: int,
    shift: int,
    at_least: int,
) -> None:
    rows, entries = value.shape
    blocks = max(triton.cdiv(entries, _VALUES), 1)  # a row without entries has a state, too
    if not rows:
        return
    with on_device_of(value):
        _digit_kernel[(rows * blocks,)](
            value.contiguous(),
            bytes_of(keep),
            tables,
            states,
            rows,
            entries,
            blocks,
            head,
            tail,
            shift,
            at_least,
            level=level,
            digit_bits=_DIGIT_BITS,
            block=_VALUES,
            num_warps=_VALUE_WARPS,
            **OPTIONS,
        )


def _found_digits(
    tables: Tensor, states: Tensor, head: int, tail: int, shift: int, at_least: int
) -> tuple[Tensor, Tensor]:
    bits, share = _no_digits(tables)
    rows = bits.shape[0]
    if rows:
        with on_device_of(tables):
            _found_kernel[(rows,)](
                tables,
                states,
                bits,
                share,
                rows,
                head,
                tail,
                shift,
                at_least,
                level=_DIGITS,
                digit_bits=_DIGIT_BITS,
                **OPTIONS,
            )
    return bits, share


def _fake_kth_largest(value: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return _no_digits(value.unsqueeze(0))


def _no_digits(tables: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    rows = tables.shape[1]
    bits = torch.empty(rows, dtype=torch.int32, device=tables.device)
    return bits, torch.empty(rows, dtype=torch.float32, device=tables.device)


_SHARE = "int head, int tail, int shift, int at_least"
define(
    f"kth_largest(Tensor value, Tensor keep, {_SHARE}) -> (Tensor, Tensor)", _kth_largest, _fake_kth_largest
)
define(
    f"count_digit(Tensor value, Tensor keep, Tensor(a!) tables, Tensor(b!) states, int level, {_SHARE}) -> ()",
    _count_digit,
    lambda *_: None,
)
define(f"found_digits(Tensor tables, Tensor states, {_SHARE}) -> (Tensor, Tensor)", _found_digits, _no_digits)


@triton.jit(do_not_specialize=["rows", "blocks", "head", "tail", "shift", "at_least"])
def _digit_kernel(
    value_ptr: tl.tensor,
    keep_ptr: tl.tensor,
    tables_ptr: tl.tensor,
    states_ptr: tl.tensor,
    rows: tl.tensor,
    entries: tl.tensor,
    blocks: tl.tensor,
    head: tl.tensor,
    tail: tl.tensor,
    shift: tl.tensor,
    at_least: tl.tensor,
    level: tl.constexpr,
    digit_bits: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Count a digit of those entries of a row whose higher digits are the k-th largest's."""
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    part = program % blocks
    entry = part.to(tl.int64) * block + tl.arange(0, block)
    inside = entry < entries
    value = tl.load(value_ptr + row * entries + entry, mask=inside, other=0.0)
    active = tl.load(keep_ptr + row * entries + entry, mask=inside, other=0) != 0
    bits = value.to(tl.int32, bitcast=True) & 0x7FFFFFFF

    cell = level * rows + row
    if level > 0:
        prefix, rest, _ = _found(
            tables_ptr, states_ptr, rows, row, head, tail, shift, at_least, level, digit_bits
        )
        tl.store(states_ptr + cell * 2, prefix, mask=part == 0)
        tl.store(states_ptr + cell * 2 + 1, rest, mask=part == 0)
        active = active & ((bits >> (32 - digit_bits * level)) == prefix.to(tl.int32))
    bins: tl.constexpr = 1 << digit_bits
    digit = (bits >> (32 - digit_bits * (level + 1))) & (bins - 1)
    # Not every Triton's histogram takes a mask: what does not count is counted as 0, and taken off again.
    count = tl.histogram(tl.where(active, digit, 0), bins).to(tl.int64)
    others = block - tl.sum(active.to(tl.int32), 0)
    every = tl.arange(0, bins)
    count = tl.where(every == 0, count - others, count)
    tl.atomic_add(tables_ptr + cell * bins + every, count, mask=count > 0, sem="relaxed")


@triton.jit(do_not_specialize=["rows", "head", "tail", "shift", "at_least"])
def _found_kernel(
    tables_ptr: tl.tensor,
    states_ptr: tl.tensor,
    bits_ptr: tl.tensor,
    share_ptr: tl.tensor,
    rows: tl.tensor,
    head: tl.tensor,
    tail: tl.tensor,
    shift: tl.tensor,
    at_least: tl.tensor,
    level: tl.constexpr,
    digit_bits: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    prefix, rest, tied = _found(
        tables_ptr, states_ptr, rows, row, head, tail, shift, at_least, level, digit_bits
    )
    some = rest > 0
    tl.store(bits_ptr + row, tl.where(some, prefix, 0x7FFFFFFF).to(tl.int32))
    share = rest.to(tl.float32) / tl.maximum(tied, 1).to(tl.float32)
    tl.store(share_ptr + row, tl.where(some, share, 0.0))


@triton.jit
def _found(
    tables_ptr: tl.tensor,
    states_ptr: tl.tensor,
    rows: tl.tensor,
    row: tl.tensor,
    head: tl.tensor,
    tail: tl.tensor,
    shift: tl.tensor,
    at_least: tl.tensor,
    level: tl.constexpr,
    digit_bits: tl.constexpr,
) -> tl.tensor:
    """Return the first ``level`` digits of the row's k-th largest, the rest of k, and how many entries have them.

    Where k is 0, all bits are 1, as no entry's without its sign are.
    """
    bins: tl.constexpr = 1 << digit_bits
    cell = (level - 1) * rows + row
    count = tl.load(tables_ptr + cell * bins + tl.arange(0, bins))
    valid = tl.sum(count, 0)
    if level == 1:
        prefix = tl.zeros_like(valid)
        rest = _number(valid, head, tail, shift, at_least)
    else:
        prefix = tl.load(states_ptr + cell * 2)
        rest = tl.load(states_ptr + cell * 2 + 1)
    from_here_up = valid - tl.cumsum(count, 0) + count
    reached = from_here_up >= rest  # by the bins from 0 to the one that is wanted
    digit = tl.sum(reached.to(tl.int32), 0) - 1
    above = tl.max(tl.where(reached, 0, from_here_up), 0)
    tied = tl.min(tl.where(reached, from_here_up, valid), 0) - above
    return (prefix << digit_bits) + digit, rest - above, tied


@triton.jit
def _number(
    valid: tl.tensor, head: tl.tensor, tail: tl.tensor, shift: tl.tensor, at_least: tl.tensor
) -> tl.tensor:
    """Return k. The product with 53 bits is high · 2^26 + low, and half a unit in its 53rd place a power of two."""
    low = valid * tl.cast(tail, tl.int64)
    high = valid * tl.cast(head, tl.int64) + (low >> 26)
    low = low & ((1 << 26) - 1)
    powers = tl.full((64,), 1, tl.int64) << tl.arange(0, 64).to(tl.int64)
    half = tl.max(tl.where((powers > 0) & (powers <= (high >> 27)), powers, 0), 0)
    product = (high + ((low + half) >> 26)) >> tl.cast(shift, tl.int64)
    return tl.minimum(tl.maximum(product, tl.cast(at_least, tl.int64)), valid)
