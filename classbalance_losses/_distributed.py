"""Sums over ranks: an all-reduce, or the identity when no process group is asked for or none is up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING or dist.is_available():
    from torch.distributed import ProcessGroup as _ProcessGroup
else:

    class _ProcessGroup:
        """Stands for the class in a build of torch that has no torch.distributed."""


ProcessGroup = _ProcessGroup | Literal["world"] | None


def resolve(process_group: ProcessGroup) -> _ProcessGroup | None:
    """Return the group to reduce over, or ``None`` where this process stands alone."""
    if process_group is None or not (dist.is_available() and dist.is_initialized()):
        return None
    return dist.group.WORLD if process_group == "world" else process_group


def world_size(process_group: ProcessGroup) -> int:
    """Return the number of ranks of the group; 1 where this process stands alone."""
    group = resolve(process_group)
    return 1 if group is None else dist.get_world_size(group)


def all_reduce_sum(tensor: Tensor, process_group: ProcessGroup) -> Tensor:
    """Return the sum of ``tensor`` over the ranks of the group, without touching the argument."""
    group = resolve(process_group)
    if group is None:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total, group=group)
    return total


def joined_value(loss: Tensor, process_group: ProcessGroup) -> Tensor:
    """Turn this rank's share of a loss into the loss of the joined batch.

    ``loss`` (a scalar) is this rank's sum over the joined normaliser, so the shares of all ranks add up to
    the loss of one process on the joined batch. The value returned is that sum, on every rank. The gradient
    is the own share's times the number of ranks: DistributedDataParallel averages gradients, and the average
    is then the gradient of one process on the joined batch.
    """
    if resolve(process_group) is None:
        return loss
    scaled = loss * world_size(process_group)
    return scaled + (all_reduce_sum(loss, process_group) - scaled.detach())
