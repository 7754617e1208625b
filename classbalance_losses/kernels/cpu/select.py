"""The k largest of each row on a CPU, found exactly, and by one pass over the row as a rule.

A float without its sign has its bits in the order of the floats. A sample tells between which bits those of the k-th
largest are likely to be. The pass counts what is above, and keeps the few that are between, to be sorted. Where that
was in vain, and over ranks, the higher 16 bits are counted, and then the lower ones among the few that share them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classbalance_losses.kernels import reference
from classbalance_losses.kernels.call import Hard, Labels, Share
from classbalance_losses.kernels.cpu import map_loops as loops
from classbalance_losses.kernels.cpu.maps import run_on_maps
from classbalance_losses.kernels.operators import define
from classbalance_losses.kernels.selection import Joined, infinite_bits

_SHORT = 1 << 14  # pixels: fewer are sorted sooner than counted
_SAMPLE = 1 << 16  # pixels of a sample, at least
_DEVIATIONS = 3  # of a sample's place from the row's
RARE = 16  # one pixel of so many may be sorted


def kth_largest(ranked: Tensor, labels: Labels, rows: int, share: Share, joined: Joined | None) -> Hard:
    """Return H: of each row's pixels that count the k with the largest values, of those that tie the part that fills k.

    Args:
        ranked: float32 (N, *). The sign does not count; NaN is larger than infinity.
        labels: Which pixels are candidates.
        rows: R, into as many parts of one size the pixels are divided.
        share: What k is.
        joined: Adds counts up over the ranks, each of which has a part of each row; ``None`` for one process.
    """
    ranked = ranked.detach()
    if joined is None:
        return Hard(ranked, *_kth_largest(ranked, *labels, rows, *share))
    return Hard(ranked, *_by_row(ranked, labels, rows, share, joined))


def _run_kth_largest(
    ranked: Tensor,
    target: Tensor,
    num_classes: int,
    ignore_index: int,
    rows: int,
    part: float,
    at_least: int,
) -> tuple[Tensor, Tensor]:
    labels, share = Labels(target, num_classes, ignore_index), Share(part, at_least)
    if target.numel() < rows * _SHORT:
        _, bits, h = reference.kth_largest(ranked, labels, rows, share, None)
        return bits, h
    return _by_row(ranked, labels, rows, share, None)


def _by_row(
    ranked: Tensor, labels: Labels, rows: int, share: Share, joined: Joined | None
) -> tuple[Tensor, Tensor]:
    found = [
        _of_row(values, labels._replace(target=target), share, joined)
        for values, target in zip(ranked.reshape(rows, -1), labels.target.reshape(rows, -1), strict=True)
    ]
    bits, wanted, tied = torch.tensor(found, dtype=torch.int64, device="cpu").view(rows, 3).unbind(1)
    h = wanted.to(torch.float32) / tied.to(torch.float32)
    return torch.where(wanted > 0, bits, infinite_bits(torch.float32)), torch.where(wanted > 0, h, 0)


def _of_row(ranked: Tensor, labels: Labels, share: Share, joined: Joined | None) -> tuple[int, int, int]:
    """Return the k-th largest's bits, how many of those that equal it are among the k largest, and how many do."""
    found = _near_sample(ranked, labels, share) if joined is None else None
    return _by_digits(ranked, labels, share, joined) if found is None else found


def _near_sample(ranked: Tensor, labels: Labels, share: Share) -> tuple[int, int, int] | None:
    """Return the same by one pass over the row, or ``None`` where the sample told too little of where to look."""
    low, high = _bounds(ranked, labels, share)
    pixels = ranked.numel()
    parts = -(-pixels // loops.PART)
    bits, found = np.empty((parts, loops.BETWEEN), np.int32), np.zeros((parts, 3), np.int64)
    tensors = {"ranked": ranked, "between": torch.from_numpy(bits), "found": torch.from_numpy(found)}
    run_on_maps(loops.between, labels, 1, tensors, low=low, high=high)
    valid, above, inside = map(int, found.sum(0))
    rest = hard_count(valid, share) - above
    if not 0 < rest <= inside:
        return None
    if low == high:
        return low, rest, inside
    if inside * RARE > pixels or found[:, 2].max() > loops.BETWEEN - loops.TOGETHER:
        return None
    near = np.sort(np.concatenate([of[:n] for of, n in zip(bits, found[:, 2], strict=True)]))
    threshold = near[-rest]
    first, end = near.searchsorted(threshold), near.searchsorted(threshold, "right")
    return int(threshold), rest - int(inside - end), int(end - first)


def _bounds(ranked: Tensor, labels: Labels, share: Share) -> tuple[int, int]:
    """Return bits between which those of the k-th largest are likely to be, from a sample of the row."""
    step = max(ranked.numel() // _SAMPLE, 1)
    target = labels.target.numpy()[::step].astype(np.int64)  # a uint8 is never -100
    bits = ranked.numpy()[::step].view(np.int32)[target != labels.ignore_index] & 0x7FFFFFFF
    low, high = bounds(bits, step, share, 0, 0x7FFFFFFF)
    return int(low), int(high)


def bounds(
    sample: np.ndarray[Any, Any], every: float, share: Share, lowest: Any, highest: Any
) -> tuple[Any, Any]:
    """Return numbers between which the k-th largest is likely to be, of which there are ``every`` times as many.

    Of all numbers it is itself. NaN is the largest.
    """
    size = sample.size
    place = hard_count(int(size * every), share) / every
    margin = _DEVIATIONS * math.sqrt(place * (1 - place / max(size, 1))) + 1 if every > 1 else 0

    def largest(n: int, beyond: Any) -> Any:
        return np.partition(sample, size - n)[size - n] if 0 < n <= size else beyond

    return largest(math.ceil(place + margin), lowest), largest(math.floor(place - margin), highest)


def hard_count(valid: int, share: Share) -> int:
    """Return k."""
    return min(max(math.floor(share.part * valid), share.at_least), valid)


def _by_digits(ranked: Tensor, labels: Labels, share: Share, joined: Joined | None) -> tuple[int, int, int]:
    """Return the same from the higher 16 bits and then the lower, whatever the values.

    Ranks join the same tables, in the same order, as those do that the reference runs on.
    """
    join = joined or _alone
    count = _counts(ranked, labels, shift=16)
    k = hard_count(int(join(torch.from_numpy(count.numpy().sum(1)))), share)
    high, rest, _ = _digit(join(count), k)
    low, rest, tied = _digit(join(_counts(ranked, labels, prefix=high)), rest)
    return high << 16 | low, rest, tied


def _alone(counts: Tensor) -> Tensor:
    return counts


def _counts(ranked: Tensor, labels: Labels, prefix: int = 0, shift: int = 0) -> Tensor:
    """Count, (1, BINS), the digits at ``shift`` of the candidates whose digits above are the prefix."""
    count = torch.from_numpy(np.zeros((1, loops.BINS), np.int64))
    run_on_maps(loops.digits, labels, 1, {"ranked": ranked, "count": count}, prefix=prefix, shift=shift)
    return count


def _digit(count: Tensor, rest: int) -> tuple[int, int, int]:
    """Return the digit of the one at place ``rest`` from above, its place among those of that digit, and how many."""
    # numpy does not wake other threads for so little.
    counts = count[0].numpy()
    from_above = counts[::-1].cumsum()
    place = int(from_above.searchsorted(rest))
    digit = loops.BINS - 1 - place
    tied = int(counts[digit])
    return digit, rest - (int(from_above[place]) - tied), tied


def _fake_kth_largest(
    ranked: Tensor, target: Tensor, num_classes: int, ignore_index: int, rows: int, *_: Any
) -> tuple[Tensor, Tensor]:
    bits, h = (torch.empty(rows, dtype=dtype, device="cpu") for dtype in (torch.int64, torch.float32))
    return bits, h


_kth_largest = define(
    "cpu_kth_largest(Tensor ranked, Tensor target, int num_classes, int ignore_index, SymInt rows, float part, "
    "int at_least) -> (Tensor, Tensor)",
    _run_kth_largest,
    _fake_kth_largest,
)
