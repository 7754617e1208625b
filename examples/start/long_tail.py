"""Classification with a long tail: cross-entropy, its logits adjusted afterwards, and logit adjustment in the loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from classbalance_losses import ClassStatistics, LogitAdjustedLoss
from classbalance_losses.functional import adjust_logits
from examples.common.streets import CLASSES
from examples.start.data import patches
from examples.start.table import print_table

C = len(CLASSES)


def train(criterion: nn.Module, steps: int) -> nn.Module:
    """Take steps of AdamW on batches of 64."""
    torch.manual_seed(0)
    data = patches(2400, seed=0)
    loader = DataLoader(data, batch_size=64, sampler=RandomSampler(data, num_samples=64 * steps))
    convolutions = nn.Conv2d(3, 32, 3, stride=2), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Flatten()
    model = nn.Sequential(*convolutions, nn.Linear(64 * 5 * 5, C))
    optimizer = torch.optim.AdamW(model.parameters())
    for images, target in loader:  # (N, 3, 16, 16) and (N,)
        optimizer.zero_grad()
        criterion(model(images), target).backward()
        optimizer.step()
    return model


def recall(logits: Tensor, labels: Tensor) -> list[float]:
    """Which part of each class's patches was found."""
    found = labels[logits.argmax(1) == labels].bincount(minlength=C)
    return (found / labels.bincount(minlength=C).clamp(min=1)).tolist()


def main(steps: int = 500) -> dict[str, list[float]]:
    """Print each class's recall, and the accuracy, on patches of streets that no training saw."""
    images, labels = patches(1200, seed=1).tensors
    statistics = ClassStatistics(C)
    statistics.update(patches(2400, seed=0).tensors[1])
    prior = statistics.pixel_counts.clamp(min=1)  # a class that was never seen has no logarithm
    plain, adjusted = (
        train(loss, steps).eval() for loss in (nn.CrossEntropyLoss(), LogitAdjustedLoss(prior))
    )
    with torch.no_grad():
        logits = {"CE": plain(images), "in the loss": adjusted(images)}
    logits["afterwards"] = adjust_logits(logits["CE"], prior)
    scores = {name: recall(of, labels) for name, of in logits.items()}
    print_table("Recall", scores, CLASSES, patches(2400, seed=0).tensors[1])
    for name, of in logits.items():
        print(f"{name}: accuracy {(of.argmax(1) == labels).float().mean():.1%}")
    return scores


if __name__ == "__main__":
    main()
