"""Dataset-level IoU: one confusion matrix over all images, as the papers report it."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix
from tqdm import tqdm


class LabelledImages(Sized, Protocol):
    """A dataset of `(image, label)`: float (channels, H, W) in [0, 1] and int64 (H, W)."""

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Scores:
    """Scores of every class in [0, 1], NaN where there is nothing to count: no pixel in the denominator."""

    iou: tuple[float, ...]
    pixel_accuracy: float
    precision: tuple[float, ...]
    recall: tuple[float, ...]

    @property
    def mean_iou(self) -> float:
        """The mean over the classes that occur."""
        return _mean(self.iou)

    def mean_iou_of(self, classes: Sequence[int]) -> float:
        """The mean over some classes, those that do not occur left out."""
        return _mean([self.iou[c] for c in classes])


def scores_from_confusion(confusion: Tensor) -> Scores:
    """Scores of a confusion matrix (C, C): rows are the labels, columns the predictions."""
    confusion = confusion.double()
    hit = confusion.diagonal()
    predicted, labelled = confusion.sum(0), confusion.sum(1)
    iou, precision, recall = (
        tuple(torch.where(of > 0, hit / of.clamp(min=1), torch.nan).tolist())
        for of in (predicted + labelled - hit, predicted, labelled)
    )
    return Scores(iou, float(hit.sum() / confusion.sum().clamp(min=1)), precision, recall)


def predicted_classes(logits: Tensor) -> Tensor:
    """The class (N, H, W) with the highest logit of (N, C, H, W); of one logit, whether it is above 0."""
    return logits.argmax(dim=1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long()


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: LabelledImages,
    *,
    num_classes: int,
    ignore_index: int,
    batch_size: int = 8,
    progress: bool = False,
) -> Scores:
    """Run a model over a dataset and score its most probable classes; the model's mode is restored.

    The images of a batch must share one size, and be where the model is. A model of one logit has two classes.
    """
    was_training = model.training
    model.eval()
    confusion = MulticlassConfusionMatrix(num_classes, ignore_index=ignore_index, validate_args=False)
    starts = range(0, len(data), batch_size)
    for start in tqdm(starts, desc="evaluate", unit="batch", leave=False, disable=not progress):
        samples = [data[i] for i in range(start, min(start + batch_size, len(data)))]
        images, labels = (torch.stack(part) for part in zip(*samples, strict=True))
        confusion.to(labels.device).update(predicted_classes(model(images)), labels)
    model.train(was_training)
    return scores_from_confusion(confusion.compute())


def _mean(values: Sequence[float]) -> float:
    present = [v for v in values if v == v]  # noqa: PLR0124 (NaN is the only value unequal to itself)
    return sum(present) / len(present) if present else float("nan")
