"""One logit a pixel: thin cracks in asphalt, with binary cross-entropy, weighted too, and with DyCE + Dice."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from classbalance_losses import ClassStatistics, DiceLoss, DyCELoss, WeightedCrossEntropyLoss
from examples.common.evaluation import evaluate
from examples.start.data import cracks
from examples.start.network import network


def losses(labels: Tensor) -> dict[str, nn.Module]:
    """Return what is compared; the weights are of the training labels."""
    statistics = ClassStatistics(task="binary")
    statistics.update(labels)
    print(f"{statistics.pixel_shares[1]:.1%} of the pixels are crack")
    weight = statistics.weights("pixel_frequency")
    return {
        "BCE": WeightedCrossEntropyLoss(task="binary"),  # = torch's BCEWithLogitsLoss, for labels (N, H, W)
        "weighted BCE": WeightedCrossEntropyLoss(weight, task="binary"),
        "DyCE + Dice": DyCELoss(task="binary") + DiceLoss(task="binary"),
    }


def train(criterion: nn.Module, steps: int) -> nn.Module:
    """Take steps of AdamW on batches of eight."""
    torch.manual_seed(0)
    data = cracks(64, seed=0)
    loader = DataLoader(data, batch_size=8, sampler=RandomSampler(data, num_samples=8 * steps))
    model = network(1, 1, width=8)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    for images, target in loader:
        optimizer.zero_grad()
        criterion(model(images), target).backward()
        optimizer.step()
        schedule.step()
    return model


def main(steps: int = 100) -> dict[str, tuple[float, float, float]]:
    """Train with each loss and print the scores of crack on images that no training saw, at a threshold of 0.5."""
    found = {}
    print(f"{f'after {steps} steps':20}{'IoU':>10}{'precision':>10}{'recall':>10}")
    for name, criterion in losses(cracks(64, seed=0).tensors[1]).items():
        scores = evaluate(train(criterion, steps), cracks(32, seed=1), num_classes=2, ignore_index=-100)
        found[name] = scores.iou[1], scores.precision[1], scores.recall[1]
        print(f"{name:20}" + "".join(f"{score:10.1%}" for score in found[name]))
    return found


if __name__ == "__main__":
    main()
