"""Which pixels take part: H, the hardest, exactly k of them, by a fraction of those that tie for its last places."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from classbalance_losses._dispatch import Backend
from classbalance_losses._distributed import ProcessGroup, all_reduce_sum, resolve
from classbalance_losses.kernels.call import Hard, Labels, Share


def hardest(
    loss: Tensor,
    labels: Labels,
    *,
    fraction: float,
    min_kept: int = 1,
    rows: int = 1,
    process_group: ProcessGroup = None,
    backend: Backend,
) -> Hard:
    """Return H: of the pixels that count the k with the largest loss, over the batch, on all ranks, or each row of it.

    k = max(min_kept, floor(fraction · pixels)). Of T pixels that tie for the last k − A places each enters H with
    h = (k − A) / T, so that H's size is k, and does not depend on the order of the pixels.
    """
    joined = None
    if resolve(process_group) is not None:
        joined = partial(all_reduce_sum, process_group=process_group)
    return backend.kth_largest(loss, labels, rows, Share(fraction, min_kept), joined)
