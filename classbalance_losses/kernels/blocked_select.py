"""Exact selection on a CPU: the k-th largest value by counting the 16-bit digits of its bits, highest first.

A non-negative float keeps its order when its bits are read as an integer, and the digits of that integer lie in memory
as they are: looking at one costs no arithmetic. Once a digit of the answer is known, the next one is counted among the
few entries that share it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_DIGIT = 16
_BINS = 1 << _DIGIT


def kth_largest_bits(value: Tensor, dropped: int, k: Tensor, joined: Callable[[Tensor], Tensor]) -> int:
    """Return the bits of the k-th largest of (P,) non-negative floats.

    ``dropped`` is how many of them do not take part; those must be 0. ``k`` (1,) counts the entries of all ranks, and
    ``joined`` adds up (1, 2^16) counts over them. Where k is 0 the answer, 0, means nothing.
    """
    digits = value.contiguous().view(torch.int16).view(value.numel(), value.element_size() // 2)
    bits, wanted = 0, int(k)
    for place in range(digits.shape[1] - 1, -1, -1):  # the highest digit lies last
        digit = digits[:, place].int() & (_BINS - 1)
        histogram = torch.bincount(digit, minlength=_BINS)
        histogram[0] -= dropped
        at_least = joined(histogram.unsqueeze(0)).squeeze(0).flip(0).cumsum(0)  # from the highest bin down
        rank = int(torch.searchsorted(at_least, k).clamp(max=_BINS - 1))
        found = _BINS - 1 - rank
        if rank:
            k = k - at_least[rank - 1]
        bits = (bits << _DIGIT) | found
        digits = digits[digit == found]
        dropped = 0 if found else dropped
    # Not before the loop: another rank, which may search in another way, waits for these counts.
    return bits if wanted else 0
