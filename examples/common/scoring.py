"""Scores on whole images of a test set: sliding window, one confusion matrix over the set, subsets of classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from statistics import mean
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix
from tqdm import tqdm

from examples.common.distributed import all_sum, rank, world_size
from examples.common.evaluation import scores_from_confusion
from examples.common.scenes.labels import IGNORE_INDEX

Size = tuple[int, int]  # height, width
RARE = 5  # how many of the rarest classes a table's second mean is over


class NamedImages(Protocol):
    """A test set whose images have names, and perhaps different sizes."""

    @property
    def names(self) -> Sequence[str]:
        """A name for each image."""

    def image(self, index: int) -> Tensor:
        """Image `index`, float32 (3, H, W) in [0, 1]."""

    def label(self, index: int) -> Tensor:
        """Its class indices, int64 (H, W)."""


@torch.no_grad()
def confusion_of(
    predict: Callable[[str, Tensor], Tensor],
    images: NamedImages,
    num_classes: int,
    ignore_index: int,
    device: torch.device,
    *,
    progress: bool = False,
) -> Tensor:
    """The confusion matrix (C, C) of a test set, on the CPU: rows are the labels.

    The ranks share the images, and each gets the matrix of all; where there are several, all must call this.

    Args:
        predict: name and image (3, H, W) -> logits (C, H, W), which are enlarged to the label's size.
        images: the test set.
        num_classes: C.
        ignore_index: the label of pixels that do not count.
        device: where predictions are made.
        progress: show a progress bar.
    """
    confusion = MulticlassConfusionMatrix(num_classes, ignore_index=ignore_index, validate_args=False)
    confusion = confusion.to(device)
    own = range(rank(), len(images.names), world_size())
    for i in tqdm(own, desc="evaluate", unit="image", leave=False, disable=not progress):
        label = images.label(i)[None].to(device)
        logits = predict(images.names[i], images.image(i))[None]
        if logits.shape[-2:] != label.shape[-2:]:  # the image was resized, its label was not
            logits = F.interpolate(logits, label.shape[-2:], mode="bilinear", align_corners=False)
        confusion.update(logits.argmax(1), label)
    return all_sum(confusion.confmat).cpu()


def score_tests(
    predict: Callable[[str, Tensor], Tensor],
    tests: Mapping[str, NamedImages],
    means: Mapping[str, Sequence[int]],
    num_classes: int,
    device: torch.device,
    *,
    progress: bool = False,
) -> dict[str, dict[str, Any]]:
    """The scores of each test set, as `scores_entry` has them; for the arguments see there and `confusion_of`."""
    return {
        name: scores_entry(
            confusion_of(predict, images, num_classes, IGNORE_INDEX, device, progress=progress), means
        )
        for name, images in tests.items()
    }


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Networks in evaluation mode, and then in the mode that they were in."""
    modes = [network.training for network in networks]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)


def sliding_window(
    network: Callable[[Tensor], Tensor], image: Tensor, window: Size | None, stride: Size | None = None
) -> Tensor:
    """Mean logits (N, C, H, W) over windows that cover an image (N, 3, H, W); the last ones end at its border.

    Args:
        network: (N, 3, h, w) -> (N, C, h, w).
        image: the image.
        window: (h, w), cut to the image's size; None is the whole image.
        stride: between windows; None is two thirds of the window.

    Raises:
        ValueError: the stride exceeds the window, so that pixels between windows would be lost.
    """
    if window is None:
        return network(image)
    if stride is not None and (stride[0] > window[0] or stride[1] > window[1]):
        raise ValueError(f"the stride must be at most the window, {window}, got {stride}")
    size = [min(have, want) for have, want in zip(image.shape[-2:], window, strict=True)]
    steps = stride or tuple(max(2 * side // 3, 1) for side in size)
    tops, lefts = (_starts(*sides) for sides in zip(image.shape[-2:], size, steps, strict=True))
    total: Tensor | float = 0.0
    count = image.new_zeros(image.shape[-2:])
    for top, left in product(tops, lefts):
        place = (..., slice(top, top + size[0]), slice(left, left + size[1]))
        logits = network(image[place])
        if not isinstance(total, Tensor):
            total = logits.new_zeros(*logits.shape[:2], *image.shape[-2:])
        total[place] += logits
        count[place] += 1
    return total / count


def scores_entry(confusion: Tensor, means: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Scores of a confusion matrix as plain data; None stands for the IoU of a class that does not occur."""
    scores = scores_from_confusion(confusion)
    return {
        "mean_iou": {name: scores.mean_iou_of(classes) for name, classes in means.items()},
        "iou": [None if math.isnan(value) else value for value in scores.iou],
        "pixel_accuracy": scores.pixel_accuracy,
        "pixels": confusion.sum(1).tolist(),
    }


def scores_table(entry: Mapping[str, Any], classes: Sequence[str], main: Sequence[int]) -> str:
    """A Markdown table of one test set: the means, and the IoU of each class of `main`, in percent."""
    names = [*entry["mean_iou"], *(classes[c].replace("_", " ") for c in main)]
    values = [*entry["mean_iou"].values(), *(entry["iou"][c] for c in main)]
    cells = ["–" if value is None else f"{100 * value:.1f}" for value in values]
    return "\n".join(f"| {' | '.join(row)} |" for row in (names, ["---:"] * len(names), cells))


def by_rarity(pixels: Sequence[int]) -> list[int]:
    """The classes that have pixels, the rarest first."""
    return sorted((c for c, count in enumerate(pixels) if count), key=lambda c: pixels[c])


def rare_mean(entry: Mapping[str, Any]) -> float:
    """The mean IoU of the classes with the fewest test pixels, of those that occur."""
    return mean(entry["iou"][c] for c in by_rarity(entry["pixels"])[:RARE])


def _starts(length: int, size: int, stride: int) -> list[int]:
    return [*range(0, length - size, stride), length - size]
