"""Stage 3: which pixels take part. The k-th largest of many losses is found exactly, without sorting.

The bits of a non-negative float, read as an integer, are in the order of the floats. So a histogram of the
highest 16 bits finds the bin that holds the k-th largest value, a second one over the next 16 bits, within
that bin, refines it, and so on until the value is known to the last bit. k may live on the device, ties cost
nothing, and ranks exchange histograms instead of losses.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from classbalance_losses._dispatch import backend_for
from classbalance_losses._distributed import ProcessGroup, all_reduce_sum, resolve
from classbalance_losses._validate import is_transformed
from classbalance_losses.kernels import blocked_select
from classbalance_losses.kernels.masks import bits_of
from classbalance_losses.kernels.numba_threads import MAY_COMPILE
from classbalance_losses.ops.reduction import row_sums

_DIGIT = 16
_BINS = 1 << _DIGIT
_SHORT = _BINS
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


def kth_largest_bits(
    bits: Tensor, keep: Tensor, k: Tensor, *, digits: int, process_group: ProcessGroup = None
) -> Tensor:
    """Return the k-th largest of the kept entries of each row: ``bits`` (R, P), ``keep`` (R, P), ``k`` (R,).

    ``digits`` is the number of 16-bit digits: 2 for float32, 4 for float64. With a process group the rows of
    all ranks are searched as one, for the same ``k``. Where k is 0 the answer means nothing.
    """
    # A row with fewer entries than a histogram has bins is cheaper to sort, and many such rows (images of one
    # pixel, say) would need far more memory for their histograms than they have entries.
    if 0 < bits.shape[1] < _SHORT and resolve(process_group) is None:
        return _kth_by_sorting(bits, keep, k)
    return _kth_by_histograms(bits, keep, k, digits, process_group)


def _kth_by_sorting(bits: Tensor, keep: Tensor, k: Tensor) -> Tensor:
    ordered = torch.where(keep, bits, -1).sort(1, descending=True).values
    return ordered.gather(1, (k - 1).clamp(min=0).unsqueeze(1)).squeeze(1)


def _kth_by_histograms(
    bits: Tensor, keep: Tensor, k: Tensor, digits: int, process_group: ProcessGroup
) -> Tensor:
    prefix = torch.zeros_like(k)
    rest = k
    for shift in range(_DIGIT * (digits - 1), -1, -_DIGIT):
        histogram = all_reduce_sum(_histogram(bits, keep, prefix, shift), process_group)
        at_least = histogram.flip(1).cumsum(1).flip(1)  # entries in this bin or above
        found = ((at_least >= rest.unsqueeze(1)).sum(1) - 1).unsqueeze(1)
        rest = rest - (at_least - histogram).gather(1, found).squeeze(1)
        prefix = (prefix << _DIGIT) | found.squeeze(1)
    return prefix


def _histogram(bits: Tensor, keep: Tensor, prefix: Tensor, shift: int) -> Tensor:
    """Count, for each row, the digits at ``shift`` of the kept entries whose higher bits are the prefix."""
    if backend_for(bits, keep, blocked_from=0) == "triton":
        from classbalance_losses.kernels.triton_select import histogram16  # noqa: PLC0415 - an optional dependency

        counts: Tensor = histogram16(bits, keep, prefix, shift)
        return counts
    digit = (bits >> shift) & (_BINS - 1)
    # At the first digit everything is active; a shift by all 64 bits would be undefined.
    active = keep & ((bits >> min(shift + _DIGIT, 63)) == prefix.unsqueeze(1))
    zeros = torch.zeros(prefix.shape[0], _BINS, dtype=torch.int64, device=bits.device)
    return zeros.scatter_add(1, digit, active.long())


def hard_count(valid: Tensor, fraction: float, min_kept: int) -> Tensor:
    """Return k = max(min_kept, floor(fraction · valid)), at most ``valid``; the product is in float64."""
    share = (valid.double() * fraction).floor().long()
    return torch.minimum(share.clamp(min=min_kept), valid)


def hardest(
    loss: Tensor,
    keep: Tensor,
    *,
    fraction: float,
    min_kept: int = 1,
    scope: str = "batch",
    process_group: ProcessGroup = None,
) -> Tensor:
    """Return the mask H (N, *) of every kept pixel whose loss is at least the k-th largest kept one.

    k = max(min_kept, floor(fraction · kept)), over the batch, on all ranks together, or over each image.
    Ties at the threshold are all kept, so the result does not depend on the order of the pixels.
    """
    rows = (loss.shape[0], -1) if scope == "image" and loss.numel() else (1, loss.numel())
    group = None if scope == "image" else process_group
    kept = keep.reshape(rows)
    own = row_sums(kept)
    valid = all_reduce_sum(own, group)
    k = hard_count(valid, fraction, min_kept)
    has_loop = MAY_COMPILE and loss.dtype == torch.float32
    if (
        kept.shape[1] >= (_COMPILED_FROM if has_loop else _SHORT)
        and backend_for(loss, keep, blocked_from=0) == "blocked"
    ):
        joined = partial(all_reduce_sum, process_group=group)
        return blocked_select.at_least_kth(loss.detach().reshape(rows), kept, k, own, joined).reshape(
            loss.shape
        )
    bits = ordered_bits(loss).reshape(rows)
    digits = 4 if loss.dtype == torch.float64 else 2
    threshold = kth_largest_bits(bits, kept, k, digits=digits, process_group=group)
    # Where k is 0 nothing is hard; no finite loss has the largest integer for its bits.
    threshold = torch.where(k > 0, threshold, torch.iinfo(bits.dtype).max)
    hard = (bits >= threshold.unsqueeze(1)) & kept
    return hard.reshape(loss.shape)
