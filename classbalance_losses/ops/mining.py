"""Stage 3: which pixels take part. The k-th largest of many losses is found exactly, without sorting.

The bits of a non-negative float, read as an integer, are in the order of the floats. So a histogram of the
highest 16 bits finds the bin that holds the k-th largest value, a second one over the next 16 bits, within
that bin, refines it, and so on until the value is known to the last bit. What is above it, and how many
entries tie with it, is known then, too. k may live on the device, and ranks exchange histograms instead of losses.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple, Protocol, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from classbalance_losses._dispatch import backend_for
from classbalance_losses._distributed import ProcessGroup, all_reduce_sum, resolve
from classbalance_losses._validate import is_transformed
from classbalance_losses.kernels import blocked_select
from classbalance_losses.kernels.masks import bits_of
from classbalance_losses.kernels.numba_threads import MAY_COMPILE
from classbalance_losses.ops.counts import class_counts, has_kernels
from classbalance_losses.ops.reduction import row_sums
from classbalance_losses.ops.weights import per_pixel

_DIGIT = 16
_BINS = 1 << _DIGIT
_SHORT = _BINS
_SHORT_FOR_KERNEL = 1 << 11  # entries: half of the bins of its histograms
_COMPILED_FROM = 1 << 14  # entries of a row, where numba may compile a loop


def ordered_bits(value: Tensor) -> Tensor:
    """Return int64 that sort as the non-negative floats of ``value`` do; NaN counts as the largest."""
    # abs() clears the sign of -0.0 and of NaN, which would otherwise read as negative integers.
    value = value.detach().abs()
    # torch 2.6's vmap has no rule of its own for a view as another dtype.
    bits = _Bits.apply(value) if is_transformed(value) else bits_of(value)  # type: ignore[no-untyped-call]
    return bits.long()


class _Bits(torch.autograd.Function):
    """The bits of a float, with a rule for vmap: they are element by element."""

    @staticmethod
    def forward(value: Tensor) -> Tensor:
        return bits_of(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], value: Tensor) -> tuple[Tensor, int | None]:
        return ordered_bits(value), in_dims[0]


class Mining(TypedDict):
    """How H is chosen: see `hardest`."""

    fraction: float
    min_kept: int
    scope: str
    process_group: ProcessGroup


class Entries(Protocol):
    """Rows of non-negative floats (R, P) of which some are kept, as the search by digits sees them."""

    def histogram(self, prefix: Tensor, shift: int) -> Tensor:
        """Count, (R, 2^16), the digits at ``shift`` of those whose higher bits are the row's prefix (R,)."""

    def members(self, below: Tensor) -> tuple[Tensor, Tensor]:
        """Return which are kept and have larger bits than their row's ``below`` (R,), and which the next."""


class KthLargest(NamedTuple):
    """The k-th largest kept entry of each row (R,), in int64; without meaning where k is 0."""

    bits: Tensor
    """Its bits, as a whole number."""
    wanted: Tensor
    """How many of those that equal it are among the k largest."""
    tied: Tensor
    """How many equal it."""


class HardPixels(NamedTuple):
    """H: the pixels above a threshold, and of those at it the part that fills k. A row is an image, or the batch."""

    mask: Tensor
    """Which pixels are in H, as a whole or in part (N, *)."""
    tied: Tensor
    """Which are in part (N, *)."""
    share: Tensor
    """h, the part of them, for each row (R,)."""

    def by_class(self, target: Tensor, num_classes: int) -> HardClasses:
        """Tell H's pixels apart by their class, and tied ones by their row besides."""
        rows = self.share.shape[0]
        row = torch.arange(1, rows + 1, dtype=torch.int64, device=target.device)
        row = row.view(-1, *[1] * (target.ndim - 1))
        cell = torch.where(self.tied, target + num_classes * row, target)
        return HardClasses(self.mask, cell, F.pad(self.share, (1, 0), value=1.0), num_classes)


class HardClasses(NamedTuple):
    """H by classes: a tied pixel of class c and row r is in the cell (1 + r) C + c, another in the cell c."""

    mask: Tensor
    cell: Tensor
    share: Tensor
    """h_i of the pixels of C cells each: 1, and h of each row."""
    num_classes: int

    def counts(self) -> Tensor:
        r"""Return :math:`f_c = \sum_{i:\, y_i = c} h_i` (C,)."""
        count = class_counts(self.cell, self.mask, self.share.shape[0] * self.num_classes)
        return (count.view(-1, self.num_classes).to(self.share.dtype) * self.share.unsqueeze(1)).sum(0)

    def per_pixel(self, class_weight: Tensor) -> Tensor:
        r"""Return :math:`h_i w_{y_i}` (N, *), which is 0 off H."""
        weight = self.share.unsqueeze(1) * class_weight.to(self.share.dtype)
        return per_pixel(weight.flatten(), self.cell, self.mask, self.share.dtype)


def with_weight(keep: Tensor, pixel_weight: Tensor | None) -> Tensor:
    """Return which pixels are candidates for H: of those kept, the ones whose weight is not 0."""
    return keep if pixel_weight is None else keep & (pixel_weight != 0)


def hardest(
    loss: Tensor,
    keep: Tensor,
    *,
    fraction: float,
    min_kept: int = 1,
    scope: str = "batch",
    process_group: ProcessGroup = None,
) -> HardPixels:
    """Return H: of the kept pixels the k with the largest loss, over the batch, on all ranks together, or each image.

    k = max(min_kept, floor(fraction · kept)). Of T pixels that tie for the last k − A places each enters H with
    h = (k − A) / T, so that H's size is k, and does not depend on the order of the pixels.
    """
    rows = rows_of(loss, scope)
    group = None if scope == "image" else process_group
    value, kept = loss.detach().reshape(rows), keep.reshape(rows)
    kernel = kth_by_kernel(loss, keep, fraction, min_kept, scope, process_group)
    if kernel is not None:
        bits, share = kernel
        mask, tied = BitEntries(ordered_bits(value), kept).members(
            torch.where(share > 0, bits - 1, bits).long()
        )
        return HardPixels(mask.reshape(loss.shape), tied.reshape(loss.shape), share)
    valid = row_sums(kept)
    k = hard_count(all_reduce_sum(valid, group), fraction, min_kept)

    digits = 8 * loss.element_size() // _DIGIT
    has_loop = MAY_COMPILE and loss.dtype == torch.float32
    entries: Entries
    if (
        kept.shape[1] >= (_COMPILED_FROM if has_loop else _SHORT)
        and backend_for(loss, keep, blocked_from=0) == "blocked"
    ):
        entries = blocked_select.BlockedEntries(value, kept, valid)
        found = kth_by_digits(entries, k, digits, group)
    else:
        entries = BitEntries(ordered_bits(value), kept)
        found = entries.kth_largest(k, digits, group)

    # Where k is 0 nothing is hard. The largest integer may be a loss's bits: those of a NaN.
    largest = torch.iinfo(torch.int64 if loss.dtype == torch.float64 else torch.int32).max
    mask, tied = entries.members(torch.where(k > 0, found.bits - 1, largest))
    share = torch.where(k > 0, found.wanted.to(loss.dtype) / found.tied.to(loss.dtype), 0)
    return HardPixels(mask.reshape(loss.shape), tied.reshape(loss.shape), share)


def rows_of(loss: Tensor, scope: str) -> tuple[int, int]:
    """Return how many rows of how many pixels are mined, each for itself."""
    rows = loss.shape[0] if scope == "image" and loss.numel() else 1
    return rows, loss.numel() // rows


def kth_by_kernel(
    loss: Tensor, keep: Tensor, fraction: float, min_kept: int, scope: str, process_group: ProcessGroup
) -> tuple[Tensor, Tensor] | None:
    """Return the bits of the k-th largest loss and h, (R,); ``None`` where kernels cannot, or rows are short.

    Where k is 0 they are the largest integer, and 0.
    """
    rows = rows_of(loss, scope)
    group = None if scope == "image" else resolve(process_group)
    if not has_kernels(loss, keep, keep) or (rows[0] > 1 and rows[1] < _SHORT_FOR_KERNEL):
        return None
    from classbalance_losses.kernels import triton_select  # noqa: PLC0415 - an optional dependency

    value, kept = loss.detach().reshape(rows), keep.reshape(rows)
    share = triton_select.Share(*fixed_point(fraction), min_kept)
    if group is None:
        return triton_select.kth_largest(value, kept, share)
    return triton_select.kth_largest_of_ranks(
        value, kept, share, partial(all_reduce_sum, process_group=group)
    )


def hard_count(valid: Tensor, fraction: float, min_kept: int) -> Tensor:
    """Return k = max(min_kept, floor(fraction · valid)), at most ``valid``; the product is rounded as in float64."""
    return torch.minimum(floored_product(valid, fraction).clamp(min=min_kept), valid)


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


def kth_by_digits(entries: Entries, k: Tensor, digits: int, process_group: ProcessGroup) -> KthLargest:
    """Find the k-th largest (R,) of each row, and over all ranks of a group, from the highest of its digits down."""
    prefix, rest, tied = torch.zeros_like(k), k, k
    for shift in range(_DIGIT * (digits - 1), -1, -_DIGIT):
        histogram = all_reduce_sum(entries.histogram(prefix, shift), process_group)
        at_least = histogram.flip(1).cumsum(1).flip(1)  # entries in this bin or above
        found = ((at_least >= rest.unsqueeze(1)).sum(1) - 1).unsqueeze(1)
        tied = histogram.gather(1, found).squeeze(1)
        rest = rest - (at_least.gather(1, found).squeeze(1) - tied)
        prefix = (prefix << _DIGIT) | found.squeeze(1)
    return KthLargest(prefix, rest, tied)


class BitEntries(NamedTuple):
    """Entries by their ordered bits (R, P), in plain PyTorch."""

    bits: Tensor
    keep: Tensor

    def histogram(self, prefix: Tensor, shift: int) -> Tensor:
        """See `Entries`."""
        digit = (self.bits >> shift) & (_BINS - 1)
        # At the first digit everything is active; a shift by all 64 bits would be undefined.
        active = self.keep & ((self.bits >> min(shift + _DIGIT, 63)) == prefix.unsqueeze(1))
        zeros = torch.zeros(prefix.shape[0], _BINS, dtype=torch.int64, device=prefix.device)
        return zeros.scatter_add(1, digit, active.long())

    def members(self, below: Tensor) -> tuple[Tensor, Tensor]:
        """See `Entries`."""
        below = below.unsqueeze(1)
        return self.keep & (self.bits > below), self.keep & (self.bits == below + 1)

    def kth_largest(self, k: Tensor, digits: int, process_group: ProcessGroup) -> KthLargest:
        """Find the k-th largest (R,) of each row: `kth_by_digits`, or by sorting."""
        # A row with fewer entries than a histogram has bins is cheaper to sort, and many such rows (images of one
        # pixel, say) would need far more memory for their histograms than they have entries.
        if not 0 < self.bits.shape[1] < _SHORT or resolve(process_group) is not None:
            return kth_by_digits(self, k, digits, process_group)
        ordered = torch.where(self.keep, self.bits, -1).sort(1, descending=True).values
        bits = ordered.gather(1, (k - 1).clamp(min=0).unsqueeze(1))
        return KthLargest(bits.squeeze(1), k - (ordered > bits).sum(1), (ordered == bits).sum(1))
