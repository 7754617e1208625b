"""Exact selection on a CPU: the k-th largest value by counting the 16-bit digits of its bits, highest first.

A non-negative float keeps its order when its bits are read as an integer. Once a digit of the answer is known, the next
one is counted among the few entries that share it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from classbalance_losses.kernels.masks import bits_of

_DIGIT = 16
_BINS = 1 << _DIGIT


def ordered_bits(value: Tensor, keep: Tensor) -> Tensor:
    """Return int32 or int64 that sort as non-negative floats do, 0 where not kept; NaN counts as the largest."""
    bits = bits_of(value)
    return (bits & torch.iinfo(bits.dtype).max).mul_(keep)  # -0.0 and NaN may have a sign, too


def kth_largest_bits(bits: Tensor, dropped: int, k: Tensor, joined: Callable[[Tensor], Tensor]) -> int:
    """Return the k-th largest of (P,) `ordered_bits`.

    ``dropped`` is how many of them do not take part; those must be 0. ``k`` (1,) counts the entries of all ranks, and
    ``joined`` adds up (1, 2^16) counts over them. Where k is 0 the answer, 0, means nothing.
    """
    answer, wanted = 0, int(k)
    for shift in range(8 * bits.element_size() - _DIGIT, -1, -_DIGIT):
        digit = (bits >> shift).bitwise_and_(_BINS - 1)
        histogram = torch.bincount(digit, minlength=_BINS)
        histogram[0] -= dropped
        at_least = joined(histogram.unsqueeze(0)).squeeze(0).flip(0).cumsum(0)  # from the highest bin down
        rank = int(torch.searchsorted(at_least, k).clamp(max=_BINS - 1))
        found = _BINS - 1 - rank
        if rank:
            k = k - at_least[rank - 1]
        answer = (answer << _DIGIT) | found
        bits = bits[digit == found]  # few: by their places, which takes a tenth of masked_select's time
        dropped = 0 if found else dropped
    # Not before the loop: another rank, which may search in another way, waits for these counts.
    return answer if wanted else 0
