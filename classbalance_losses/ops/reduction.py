"""From weighted sums to the loss, over one rank or all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from classbalance_losses._distributed import ProcessGroup, all_reduce_sum, joined_value


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
        normalizer = normalizer.to(total.dtype)
        total = total / normalizer.clamp(min=torch.finfo(total.dtype).tiny)
    return joined_value(total, process_group)


def global_sum(value: Tensor, process_group: ProcessGroup) -> Tensor:
    """Return the sum of all entries of ``value`` over all ranks, as a constant in its dtype; a mask's in int64."""
    return all_reduce_sum(value.detach().sum(), process_group)
