"""Exact selection on a CPU: the k-th largest value by counting the 16-bit digits of its bits, highest first.

A non-negative float keeps its order when its bits are read as an integer. Once a digit of the answer is known, the next
one is counted among the few entries that share it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from classbalance_losses.kernels import numba_threads
from classbalance_losses.kernels.masks import bits_of

_DIGIT = 16
_BINS = 1 << _DIGIT


def at_least_kth(
    value: Tensor, keep: Tensor, k: Tensor, valid: Tensor, joined: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return where (R, P) non-negative floats are kept, and no smaller than their row's k-th largest kept one.

    ``valid`` (R,) is how many of a row are kept; ``k`` (R,) counts the entries of all ranks, over which ``joined``
    adds up (1, 2^16) counts. Where k is 0, nothing is chosen.
    """
    search = _compiled if value.dtype == torch.float32 and numba_threads.can_compile() else _plain
    rows = zip(value, keep, k.unsqueeze(1), valid.tolist(), strict=True)
    return torch.stack([search(*row, joined) for row in rows])


def _compiled(
    value: Tensor, keep: Tensor, k: Tensor, valid: int, joined: Callable[[Tensor], Tensor]
) -> Tensor:
    from classbalance_losses.kernels import numba_maps  # noqa: PLC0415 - an optional dependency

    wanted, threshold = int(k), 0
    for shift in (_DIGIT, 0):
        digit, k = _digit_of(numba_maps.digit_counts(value, keep, threshold, shift), k, joined)
        threshold = (threshold << _DIGIT) | digit
    return numba_maps.at_least(value, keep, threshold) if wanted else torch.zeros_like(keep)


def _plain(value: Tensor, keep: Tensor, k: Tensor, valid: int, joined: Callable[[Tensor], Tensor]) -> Tensor:
    bits = bits_of(value)
    bits = (bits & torch.iinfo(bits.dtype).max).mul_(keep)  # -0.0 and NaN may have a sign, too
    wanted, threshold, dropped, rest = int(k), 0, keep.numel() - valid, bits
    for shift in range(8 * bits.element_size() - _DIGIT, -1, -_DIGIT):
        place = (rest >> shift).bitwise_and_(_BINS - 1)
        histogram = torch.bincount(place, minlength=_BINS)
        histogram[0] -= dropped
        digit, k = _digit_of(histogram, k, joined)
        threshold = (threshold << _DIGIT) | digit
        rest = rest[place == digit]  # few: by their places, which takes a tenth of masked_select's time
        dropped = 0 if digit else dropped
    # Not before the loop: another rank, which may search in another way, waits for these counts.
    return (bits >= threshold) & keep if wanted else torch.zeros_like(keep)


def _digit_of(histogram: Tensor, k: Tensor, joined: Callable[[Tensor], Tensor]) -> tuple[int, Tensor]:
    """Return the bin (2^16,) that holds the k-th largest entry, and which of that bin's largest it is."""
    at_least = joined(histogram.unsqueeze(0)).squeeze(0).flip(0).cumsum(0)  # from the highest bin down
    rank = int(torch.searchsorted(at_least, k).clamp(max=_BINS - 1))
    return _BINS - 1 - rank, k - at_least[rank - 1] if rank else k
