"""Sums over ranks: an all-reduce, or the identity when no process group is asked for or none is up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakValueDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from classbalance_losses._recompute import first_time

if TYPE_CHECKING or dist.is_available():
    GroupObject = dist.ProcessGroup
else:

    class GroupObject:
        """Stands for the class in a build of torch that has no torch.distributed."""


ProcessGroup = GroupObject | Literal["world"] | None


class HeldGroup:
    """A group object as a module holds it: copies share it, and a pickle names it by its ranks.

    Unpickled, it is the same group where this process has it still, the world where its ranks are the world's, and
    an error that says so elsewhere, once it is asked for. Where no process group is up there is none to ask for.
    """

    def __init__(self, group: GroupObject) -> None:
        self._group: GroupObject | None = group
        self.name: str = group.group_name
        self.ranks = tuple(dist.get_process_group_ranks(group))
        _held[self.name, self.ranks] = self

    @property
    def group(self) -> GroupObject | None:
        """The group, or ``None`` where this process stands alone.

        Raises:
            RuntimeError: it was unpickled in another process, and is not that process's world.
        """
        if self._group is None and dist.is_available() and dist.is_initialized():
            if list(self.ranks) != dist.get_process_group_ranks(dist.group.WORLD):
                raise RuntimeError(
                    f"This loss was pickled with a process group of ranks {list(self.ranks)}, which this process does "
                    f"not have. Assign one: loss.process_group = torch.distributed.new_group({list(self.ranks)})."
                )
            self._group = dist.group.WORLD
        return self._group

    def __deepcopy__(self, memo: object) -> HeldGroup:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _found, (self.name, self.ranks)


_held: WeakValueDictionary[tuple[str, tuple[int, ...]], HeldGroup] = WeakValueDictionary()


def _found(name: str, ranks: tuple[int, ...]) -> HeldGroup:
    """Unpickle a group."""
    known = _held.get((name, ranks))
    if known is None:
        known = HeldGroup.__new__(HeldGroup)
        known._group, known.name, known.ranks = None, name, ranks
    return known


def resolve(process_group: ProcessGroup) -> GroupObject | None:
    """Return the group to reduce over, or ``None`` where this process stands alone."""
    if process_group is None or not (dist.is_available() and dist.is_initialized()):
        return None
    return dist.group.WORLD if process_group == "world" else process_group


def world_size(process_group: ProcessGroup) -> int:
    """Return the number of ranks of the group; 1 where this process stands alone."""
    group = resolve(process_group)
    return 1 if group is None else dist.get_world_size(group)


def all_reduce_sum(tensor: Tensor, process_group: ProcessGroup) -> Tensor:
    """Return the sum of ``tensor`` over the ranks of the group, without touching the argument.

    A recomputation takes the sum that its call had.
    """
    group = resolve(process_group)
    if group is None:
        return tensor
    return first_time(group, tensor, lambda: _reduced(tensor, group))


def all_reduce_counts(counts: Tensor, dtype: torch.dtype, process_group: ProcessGroup) -> Tensor:
    """Return the same of counts, over ranks in a loss's dtype: others may have weights or shares in their place."""
    return counts if resolve(process_group) is None else all_reduce_sum(counts.to(dtype), process_group)


def _reduced(tensor: Tensor, group: GroupObject) -> Tensor:
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
    rest = all_reduce_sum(loss, process_group) - scaled.detach()
    return scaled + torch.where(
        torch.isinf(scaled), 0, rest
    )  # an infinite share is the sum: ∞ - ∞ would be NaN
