"""Several processes that train as one would on the joined batch: the group, sums over it, and BatchNorm's statistics.

Without a process group everything here is the identity, so that one script serves one process and many.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# The first rank may count the classes of a whole data set while the others wait for it.
_TIMEOUT = timedelta(hours=2)


@contextmanager
def process_group(device: str) -> Iterator[torch.device]:
    """The group that torchrun's environment variables describe, and this rank's device.

    CPU tensors are exchanged by gloo, CUDA tensors by NCCL, each rank on the GPU of its `LOCAL_RANK`. Without
    torchrun, or with one process, there is no group and the device is the given one.

    Args:
        device: "cpu" or "cuda".
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield torch.device(device)
        return
    own = torch.device(device)
    if own.type == "cuda":
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own)
    dist.init_process_group("cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield own
    finally:
        if torch.__version__ < (
            2,
            8,
        ):  # it may deadlock with gloo's threads that let go of the last collective's tensor
            time.sleep(0.2)
        dist.destroy_process_group()


def world_size() -> int:
    """The number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


def all_sum(tensor: Tensor) -> Tensor:
    """The sum over the ranks, without a gradient; the argument is left as it is."""
    if world_size() == 1:
        return tensor.detach()
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def joined_sum(share: Tensor) -> Tensor:
    """This rank's share of a loss -> the loss, which is the sum of all shares.

    The gradient is the own share's times the number of ranks. DistributedDataParallel takes the mean of the ranks'
    gradients, which is then the gradient of the loss. (The losses of the library do the same.)
    """
    if world_size() == 1:
        return share
    scaled = share * world_size()
    return scaled + (all_sum(share) - scaled.detach())


def any_rank(flag: bool) -> bool:
    """Whether a flag is set on some rank; the same answer on all of them."""
    return int(all_sum(torch.tensor(int(flag)))) > 0


def wait_for_all() -> None:
    """Return when all ranks have come here."""
    any_rank(False)


@contextmanager
def first_rank_first() -> Iterator[None]:
    """A block that the first rank goes through alone: what it writes there, the others find."""
    if rank() > 0:
        wait_for_all()
    try:
        yield
    finally:
        if rank() == 0:
            wait_for_all()


def gathered(value: Any) -> list[Any]:
    """The value of each rank, in their order, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of all ranks' random numbers, for a checkpoint; all ranks must ask for it."""
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    random = gathered((torch.get_rng_state(), cuda))
    return {
        "random_state": random[0][0],
        "cuda_random_states": [state for _, states in random for state in states],
        "rank_random_states": [state for state, _ in random[1:]],
    }


def restore_random_states(state: Mapping[str, Any], device: torch.device) -> None:
    """Go on with this rank's random numbers; a rank that the checkpoint does not know keeps the draws that it has."""
    own = rank()
    on_cpu = [state["random_state"], *state.get("rank_random_states", ())]
    if own < len(on_cpu):
        torch.set_rng_state(on_cpu[own])
    if device.type == "cuda" and own < len(state["cuda_random_states"]):
        torch.cuda.set_rng_state(state["cuda_random_states"][own], device)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients by their means over the ranks: what DistributedDataParallel does, after the fact.

    For training steps with several networks, passes and backward passes. All ranks must have gradients in the same
    parameters; those without one are left out.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if world_size() == 1 or not gradients:
        return
    total = all_sum(torch.cat([gradient.flatten() for gradient in gradients])) / world_size()
    for gradient, mean in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def join_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """A network whose BatchNorm layers take their statistics over all ranks; its state has the same keys.

    On CUDA these are torch's own SyncBatchNorm, which refuses CPU tensors; on the CPU they are `JoinedBatchNorm2d`.
    Convert before the optimiser is made. Without a process group the network stays as it is.
    """
    if world_size() == 1:
        return module
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return converted
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            joined = JoinedBatchNorm2d(child.num_features, child.eps, child.momentum, child.affine)
            joined.load_state_dict(child.state_dict())
            setattr(module, name, joined.train(child.training))
        else:
            join_batch_norm(child, device)
    return module


class JoinedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over the images of all ranks, as if one process had them all; for CPU ranks.

    Mean and variance are sums over ranks that the gradient flows through. The ranks' batches may differ in size.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape, normalised over all ranks' N, H and W."""
        if not self.training or self.running_mean is None or self.running_var is None:
            return super().forward(input)
        x, axes = input.float(), (0, 2, 3)
        total = _AllReduce.apply(torch.cat([x.sum(axes), x.new_tensor([x.numel() / x.shape[1]])]))
        count = total[-1].detach()
        centred = x - (total[:-1] / count).view(1, -1, 1, 1)
        variance = _AllReduce.apply(centred.square().sum(axes)) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            factor = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(total[:-1] / count, factor)
            self.running_var.lerp_(variance * (count / (count - 1)), factor)
        normal = centred * (variance + self.eps).rsqrt().view(1, -1, 1, 1)
        if self.affine:
            normal = normal * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return normal.to(input.dtype)


class _AllReduce(torch.autograd.Function):
    """The sum over ranks; its gradient is the sum of the ranks' gradients, as all of them depend on every summand."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return all_sum(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_sum(gradient)
