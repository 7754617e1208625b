"""Stage 5: from weighted pixels to the loss, over one rank or all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from classbalance_losses._dispatch import backend_for
from classbalance_losses._distributed import ProcessGroup, all_reduce_sum, joined_value
from classbalance_losses.kernels import blocked_classes

_BLOCKED_FROM = 1 << 18


def reduce_loss(
    weighted: Tensor, *, reduction: str, normalizer: Tensor, process_group: ProcessGroup = None
) -> Tensor:
    """Return the weighted pixels themselves ("none"), their sum ("sum"), or the sum over Z ("mean").

    ``normalizer`` is Z, a scalar over all ranks. Z = 0 happens only where no pixel counts; the sum, 0, then
    stands, and stays in the graph.
    """
    if reduction == "none":
        return weighted
    return reduce_total(
        weighted.sum(), reduction=reduction, normalizer=normalizer, process_group=process_group
    )


def reduce_total(
    total: Tensor, *, reduction: str, normalizer: Tensor, process_group: ProcessGroup = None
) -> Tensor:
    """Return the same from this rank's sum."""
    if reduction == "mean":
        total = total / torch.where(normalizer > 0, normalizer, 1).to(total.dtype)
    return joined_value(total, process_group)


def row_sums(values: Tensor) -> Tensor:
    """Return the sum of each row of (R, P), (R,), in its dtype; a mask counts as 0 and 1, in int64."""
    is_mask = values.dtype == torch.bool
    if is_mask and values.numel() and backend_for(values, blocked_from=_BLOCKED_FROM) == "blocked":
        return blocked_classes.row_counts(values)
    return values.sum(1)


def global_sum(value: Tensor, process_group: ProcessGroup) -> Tensor:
    """Return the sum of all entries of ``value`` over all ranks, as a constant in its dtype; a mask's in int64."""
    return all_reduce_sum(row_sums(value.detach().reshape(1, -1))[0], process_group)
