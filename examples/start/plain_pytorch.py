"""Plain PyTorch: one training loop on street scenes, with cross-entropy and with DyCE."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from classbalance_losses import DyCELoss
from examples.common.evaluation import evaluate
from examples.common.streets import CLASSES, IGNORE_INDEX
from examples.start.data import streets
from examples.start.network import network
from examples.start.table import print_table

CRITERIA = {
    "CE": nn.CrossEntropyLoss(ignore_index=IGNORE_INDEX),
    "DyCE": DyCELoss(ignore_index=IGNORE_INDEX),
}


def train(criterion: nn.Module, steps: int) -> nn.Module:
    """Take steps of AdamW on batches of eight."""
    torch.manual_seed(0)
    data = streets(48, seed=0)
    loader = DataLoader(data, batch_size=8, sampler=RandomSampler(data, num_samples=8 * steps))
    model = network(3, len(CLASSES))  # any that gives logits (N, C, H, W)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    for images, target in loader:
        optimizer.zero_grad()
        criterion(model(images), target).backward()
        optimizer.step()
        schedule.step()
    return model


def main(steps: int = 100) -> dict[str, tuple[float, ...]]:
    """Train with each loss, and print each class's IoU on streets that no training saw."""
    test = streets(24, seed=1)
    iou = {
        name: evaluate(train(criterion, steps), test, num_classes=len(CLASSES), ignore_index=IGNORE_INDEX).iou
        for name, criterion in CRITERIA.items()
    }
    print_table(f"IoU after {steps} steps", iou, CLASSES, streets(48, seed=0).tensors[1])
    return iou


if __name__ == "__main__":
    main()
