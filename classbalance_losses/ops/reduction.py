"""Stage 5: from weighted pixels to the loss, over one rank or all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from classbalance_losses._distributed import all_reduce_sum, joined_value

if TYPE_CHECKING:
    from classbalance_losses._distributed import ProcessGroup


def reduce_loss(
    weighted: Tensor, *, reduction: str, normalizer: Tensor, process_group: ProcessGroup = None
) -> Tensor:
    """Return the weighted pixels themselves ("none"), their sum ("sum"), or the sum over Z ("mean").

    ``normalizer`` is Z, a scalar over all ranks. Z = 0 happens only where no pixel counts; the sum, 0, then
    stands, and stays in the graph.
    """
    if reduction == "none":
        return weighted
    total = weighted.sum()
    if reduction == "mean":
        total = total / torch.where(normalizer > 0, normalizer, 1).to(total.dtype)
    return joined_value(total, process_group)


def global_sum(value: Tensor, process_group: ProcessGroup) -> Tensor:
    """Return the sum of all entries of ``value`` over all ranks, as a constant in float64 or int64."""
    dtype = torch.float64 if value.is_floating_point() else torch.int64
    return all_reduce_sum(value.detach().sum(dtype=dtype), process_group)
