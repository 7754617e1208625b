"""What a confusion matrix does not tell: whether probabilities are true, and boundaries where they should be.

Both are sums over a test set, from which tables and diagrams are made later.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.common.evaluation import LabelledImages, predicted_classes

BINS = 15
TOLERANCE = 2  # pixels between a boundary and its prediction


@torch.no_grad()
def quality(
    model: nn.Module, data: LabelledImages, *, num_classes: int, ignore_index: int, batch_size: int = 8
) -> dict[str, Any]:
    """Run a model over a dataset; the model's mode is restored.

    Returns:
        ``reliability``, of each class and ``BINS`` equal parts of [0, 1], the pixels with such a probability, its sum,
        and how many are of the class; of two classes those of the second alone. ``boundary``, of each class, the
        boundary's pixels that are predicted, how many of them are near a true one, the true ones, and how many of
        those are near a predicted one.
    """
    was_training = model.training
    model.eval()
    first = 1 if num_classes == 2 else 0
    reliability = torch.zeros(num_classes - first, BINS, 3, dtype=torch.float64)
    boundary = torch.zeros(num_classes, 4, dtype=torch.float64)
    for images, labels in _batches(data, batch_size):
        logits, valid = model(images), labels != ignore_index
        prob = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)
        for c in range(first, num_classes):
            is_class = (labels == c)[valid]
            reliability[c - first] += _by_probability(prob[:, c - first][valid], is_class).cpu()
        predicted = predicted_classes(logits)
        for c in range(num_classes):
            boundary[c] += _boundary_hits(predicted == c, labels == c, valid).cpu()
    model.train(was_training)
    return {"reliability": reliability.tolist(), "boundary": boundary.long().tolist()}


def calibration_error(reliability: list[list[float]]) -> float:
    """The expected calibration error of a class: the mean distance of probability and frequency over all pixels."""
    of = torch.tensor(reliability, dtype=torch.float64)
    return float((of[:, 1] - of[:, 2]).abs().sum() / of[:, 0].sum().clamp(min=1))


def boundary_f1(boundary: list[int]) -> float:
    """The harmonic mean of the shares of predicted and of true boundary that are near the other; NaN without any."""
    predicted, near_true, true, near_predicted = boundary
    if not predicted + true:
        return float("nan")
    precision, recall = near_true / max(predicted, 1), near_predicted / max(true, 1)
    return 2 * precision * recall / max(precision + recall, 1e-12)


def _batches(data: LabelledImages, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(data), size):
        samples = [data[i] for i in range(start, min(start + size, len(data)))]
        images, labels = (torch.stack(part) for part in zip(*samples, strict=True))
        yield images, labels


def _by_probability(prob: Tensor, is_class: Tensor) -> Tensor:
    """Pixels, Σ p and pixels of the class in each bin, (BINS, 3)."""
    place = (prob * BINS).long().clamp(max=BINS - 1)
    columns = (torch.ones_like(prob), prob, is_class.to(prob.dtype))
    return torch.stack([torch.bincount(place, of.double(), BINS) for of in columns], 1)


def _boundary_hits(predicted: Tensor, true: Tensor, valid: Tensor) -> Tensor:
    """The four counts of `quality` for masks (N, H, W)."""
    ours, theirs = (_boundary(mask & valid, ~mask & valid) for mask in (predicted, true))
    near_ours, near_theirs = (_grown(mask, TOLERANCE) for mask in (ours, theirs))
    counts = (ours, ours & near_theirs, theirs, theirs & near_ours)
    return torch.stack([of.sum() for of in counts]).double()


def _boundary(mask: Tensor, outside: Tensor) -> Tensor:
    """The pixels of a mask with a neighbour outside it; what is ignored and the picture's edge are neither."""
    return mask & _grown(outside, 1)


def _grown(mask: Tensor, by: int) -> Tensor:
    return F.max_pool2d(mask.float().unsqueeze(1), 2 * by + 1, stride=1, padding=by)[:, 0] > 0
