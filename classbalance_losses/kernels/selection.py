"""Exact selection in plain PyTorch: the k-th largest of many losses, found without sorting.

The bits of a non-negative float, read as an integer, are in the order of the floats. So a histogram of the
highest 16 bits finds the bin that holds the k-th largest value, a second one over the next 16 bits, within
that bin, refines it, and so on until the value is known to the last bit. What is above it, and how many
entries tie with it, is known then, too. k may live on the device, and ranks exchange histograms instead of losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from classbalance_losses.kernels.call import Share
from classbalance_losses.kernels.plain import is_transformed

Joined = Callable[[Tensor], Tensor]  # adds a table of counts up over the ranks

_DIGIT = 16
_BINS = 1 << _DIGIT
_SHORT = _BINS  # entries of a row that are cheaper to sort than to count


def ordered_bits(value: Tensor) -> Tensor:
    """Return int64 that sort as the non-negative floats of ``value`` do; NaN counts as the largest."""
    # abs() clears the sign of -0.0 and of NaN, which would otherwise read as negative integers.
    value = value.detach().abs()
    # torch 2.6's vmap has no rule of its own for a view as another dtype.
    bits = _Bits.apply(value) if is_transformed(value) else _bits_of(value)  # type: ignore[no-untyped-call]
    return bits.long()


def _bits_of(values: Tensor) -> Tensor:
    return values.view(torch.int64 if values.dtype == torch.float64 else torch.int32)


def infinite_bits(dtype: torch.dtype) -> int:
    """Return what `ordered_bits` has for infinity: all numbers are at most that, and NaNs above."""
    return 0x7FF0_0000_0000_0000 if dtype == torch.float64 else 0x7F80_0000


class _Bits(torch.autograd.Function):
    """The bits of a float, with a rule for vmap: they are element by element."""

    @staticmethod
    def forward(value: Tensor) -> Tensor:
        return _bits_of(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], value: Tensor) -> tuple[Tensor, int | None]:
        return ordered_bits(value), in_dims[0]


class KthLargest(NamedTuple):
    """The k-th largest candidate of each row (R,), in int64; without meaning where k is 0."""

    bits: Tensor
    """Its bits, as a whole number."""
    wanted: Tensor
    """How many of those that equal it are among the k largest."""
    tied: Tensor
    """How many equal it."""


def hard_count(valid: Tensor, share: Share) -> Tensor:
    """Return k = max(at_least, floor(part · valid)), at most ``valid``; the product is rounded as in float64."""
    return torch.minimum(floored_product(valid, share.part).clamp(min=share.at_least), valid)


def floored_product(count: Tensor, fraction: float) -> Tensor:
    """Return floor(fraction · count) as float64 has it, for devices without: 0.29 · 100 is 28, and 0.7 · 10 is 7.

    The product of fraction's 53 bits with a count below 2^35 is high · 2^26 + low. Half a unit in its 53rd place, as
    rounding to the nearest float64 adds it, is a power of two, below high / 2^27.
    """
    head, tail, shift = fixed_point(fraction)
    low = count * tail
    high, low = count * head + (low >> 26), low & ((1 << 26) - 1)
    powers = 1 << torch.arange(36, dtype=torch.int64, device=count.device)
    half = torch.where(powers <= (high >> 27).unsqueeze(-1), powers, 0).amax(-1)
    return (high + ((low + half) >> 26)) >> shift


def fixed_point(fraction: float) -> tuple[int, int, int]:
    """Return (head, tail, shift): fraction = (head · 2^26 + tail) / 2^(26 + shift), where it is not below 2^-37."""
    mantissa, exponent = math.frexp(fraction)
    head, tail = divmod(int(math.ldexp(mantissa, 53)), 1 << 26)
    return head, tail, min(27 - exponent, 63)


def kth_largest(bits: Tensor, keep: Tensor, k: Tensor, digits: int, joined: Joined | None) -> KthLargest:
    """Find the k-th largest of each row of ordered bits (R, P) among those kept, and over all ranks that are joined."""
    # Many short rows (images of one pixel, say) would need far more memory for histograms than they have entries.
    if not 0 < bits.shape[1] < _SHORT or joined is not None:
        return _by_digits(bits, keep, k, digits, joined)
    ordered = torch.where(keep, bits, -1).sort(1, descending=True).values
    found = ordered.gather(1, (k - 1).clamp(min=0).unsqueeze(1))
    return KthLargest(found.squeeze(1), k - (ordered > found).sum(1), (ordered == found).sum(1))


def _by_digits(bits: Tensor, keep: Tensor, k: Tensor, digits: int, joined: Joined | None) -> KthLargest:
    prefix, rest, tied, active = torch.zeros_like(k), k, k, keep
    for shift in range(_DIGIT * (digits - 1), -1, -_DIGIT):
        so_far = bits >> shift
        histogram = _histogram(so_far & (_BINS - 1), active)
        histogram = histogram if joined is None else joined(histogram)
        at_least = histogram.flip(1).cumsum(1).flip(1)  # entries in this bin or above
        found = ((at_least >= rest.unsqueeze(1)).sum(1) - 1).unsqueeze(1)
        tied = histogram.gather(1, found).squeeze(1)
        rest = rest - (at_least.gather(1, found).squeeze(1) - tied)
        prefix = (prefix << _DIGIT) | found.squeeze(1)
        active = keep & (so_far == prefix.unsqueeze(1))
    return KthLargest(prefix, rest, tied)


def _histogram(digit: Tensor, active: Tensor) -> Tensor:
    """Count the digits (R, P) of those that are active: (R, 2^16)."""
    zeros = torch.zeros(digit.shape[0], _BINS, dtype=torch.int64, device=digit.device)
    return zeros.scatter_add(1, digit, active.long())
