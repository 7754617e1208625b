"""Several processes that take the steps of one: `torchrun --nproc-per-node 2 -m examples.start.two_processes`."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from classbalance_losses import DyCELoss
from examples.start.data import cracks

CRITERIA = {
    "each process by itself": DyCELoss(task="binary"),
    "the joined batch": DyCELoss(task="binary", process_group="world"),
}


def train(criterion: nn.Module, epochs: int, rank: int, world: int) -> nn.Module:
    """Train on batches of 16 images in all; the sampler gives each process its part of every one."""
    torch.manual_seed(0)
    data = cracks(64, seed=0)
    sampler = DistributedSampler(data, world, rank)
    convolutions = (nn.Conv2d(a, 16, 5, padding=2) for a in (1, 16))  # no BatchNorm: a CPU's joins no batches
    model = nn.Sequential(*(part for conv in convolutions for part in (conv, nn.ReLU())), nn.Conv2d(16, 1, 1))
    parallel = DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for images, target in DataLoader(data, 16 // world, sampler=sampler):
            optimizer.zero_grad()
            criterion(parallel(images), target).backward()
            optimizer.step()
    return model


def main(epochs: int = 12) -> dict[str, float]:
    """Train with and without a process group; joined, the IoU of crack is that of one process, but for rounding."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        dist.init_process_group("gloo")
    images, target = cracks(32, seed=1).tensors
    iou = {}
    for name, criterion in CRITERIA.items():
        crack = train(criterion, epochs, rank, world)(images)[:, 0] > 0
        iou[name] = float((crack & (target == 1)).sum() / (crack | (target == 1)).sum())
        if rank == 0:
            print(f"{world} process(es), DyCE of {name}: IoU {iou[name]:.2%}")
    if world > 1:
        dist.destroy_process_group()
    return iou


if __name__ == "__main__":
    main()
