"""Exact selection on a CPU: what the search by 16-bit digits, highest first, asks of each row of non-negative floats.

Such a float keeps its order when its bits are read as an integer. Once a digit of the answer is known, the next one is
counted among the few entries that share it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from classbalance_losses.kernels import numba_threads
from classbalance_losses.kernels.masks import bits_of

_DIGIT = 16
_BINS = 1 << _DIGIT


class BlockedEntries:
    """Rows of non-negative floats (R, P), of which ``valid`` (R,) are kept, for `ops.mining`'s search."""

    def __init__(self, value: Tensor, keep: Tensor, valid: Tensor) -> None:
        compiled = value.dtype == torch.float32 and numba_threads.can_compile()
        self._keep = keep
        self._rows: list[_CompiledRow | _Row] = [
            _CompiledRow(row, kept) if compiled else _Row(row, kept, count)
            for row, kept, count in zip(value, keep, valid.tolist(), strict=True)
        ]

    def histogram(self, prefix: Tensor, shift: int) -> Tensor:
        """Count, (R, 2^16), the digits at ``shift`` of those whose higher bits are the row's prefix (R,)."""
        rows = zip(self._rows, prefix.tolist(), strict=True)
        return torch.stack([row.histogram(head, shift) for row, head in rows])

    def members(self, below: Tensor) -> tuple[Tensor, Tensor]:
        """Return which are kept and have larger bits than their row's ``below`` (R,), and which the next."""
        mask, tied = (torch.empty_like(self._keep, memory_format=torch.contiguous_format) for _ in range(2))
        for row, bits, *places in zip(self._rows, below.tolist(), mask, tied, strict=True):
            row.write_members(bits, *places)
        return mask, tied


class _CompiledRow(NamedTuple):
    """A row of float32 (P,), in loops that numba compiles."""

    value: Tensor
    keep: Tensor

    def histogram(self, prefix: int, shift: int) -> Tensor:
        from classbalance_losses.kernels import numba_maps  # noqa: PLC0415 - an optional dependency

        return numba_maps.digit_counts(self.value, self.keep, prefix, shift)

    def write_members(self, below: int, mask: Tensor, tied: Tensor) -> None:
        from classbalance_losses.kernels import numba_maps  # noqa: PLC0415 - an optional dependency

        numba_maps.members(self.value, self.keep, below, mask, tied)


class _Row:
    """A row of float32 or float64 (P,), in functions of torch's."""

    def __init__(self, value: Tensor, keep: Tensor, valid: int) -> None:
        bits = bits_of(value)
        # -0.0 and NaN may have a sign. What is not kept becomes 0, and is taken from the count of that.
        self._bits = (bits & torch.iinfo(bits.dtype).max).mul_(keep)
        self._keep, self._dropped = keep, keep.numel() - valid
        self._rest, self._digit = self._bits, torch.empty_like(bits[:0])

    def histogram(self, prefix: int, shift: int) -> Tensor:
        """Count the digits: to be asked from the highest down, each with the prefix that the last one led to."""
        if shift + _DIGIT < 8 * self._bits.element_size():
            # Few: by their places, which takes a tenth of masked_select's time.
            self._rest = self._rest[self._digit == prefix & (_BINS - 1)]
        self._digit = (self._rest >> shift).bitwise_and_(_BINS - 1)
        counts = torch.bincount(self._digit, minlength=_BINS)
        if prefix == 0:
            counts[0] -= self._dropped
        return counts

    def write_members(self, below: int, mask: Tensor, tied: Tensor) -> None:
        torch.gt(self._bits, below, out=mask).logical_and_(self._keep)
        largest = torch.iinfo(self._bits.dtype).max
        torch.eq(self._bits, min(below + 1, largest), out=tied).logical_and_(mask)
