"""Scores on whole images: sliding window, one confusion matrix over the data set, subsets of classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix
from tqdm import tqdm

from examples.common.distributed import all_sum, rank, world_size
from examples.common.evaluation import scores_from_confusion
from examples.semidavil.data.domain import Domain, Size
from examples.semidavil.data.labels import IGNORE_INDEX
from examples.semidavil.data.task import Task
from examples.semidavil.engine import Engine


def evaluate(engine: Engine, task: Task, *, progress: bool = False) -> dict[str, dict[str, Any]]:
    """Score the engine's network on each test set of the task: see `scores_entry`.

    The ranks share the images, and each gets the scores of all; where there are several, all must call this.
    """
    return {
        name: scores_entry(_confusion(engine, domain, len(task.classes), progress=progress), task.means)
        for name, domain in task.tests.items()
    }


@torch.no_grad()
def predict(engine: Engine, name: str, image: Tensor) -> Tensor:
    """Logits (C, H, W) of one image (3, H, W); its caption is that of the whole image."""
    recipe, networks = engine.config.training, engine.networks
    image = image[None].to(engine.device)
    with engine.autocast():
        size = (image.shape[-2], image.shape[-1])
        text = engine.describe([name], networks.inputs(image), size) if networks.text else None

        def network(window: Tensor) -> Tensor:
            shape = (window.shape[-2], window.shape[-1])
            logits: Tensor = engine.evaluated(networks.inputs(window), text, shape)
            return logits.float()

        return sliding_window(network, image, recipe.window, recipe.stride)[0]


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


def table(entry: dict[str, Any], task: Task) -> str:
    """A Markdown table of one test set: the means, and the IoU of each class in the main one, in percent."""
    main = next(iter(task.means.values()))
    names = [*entry["mean_iou"], *(task.classes[c].replace("_", " ") for c in main)]
    values = [*entry["mean_iou"].values(), *(entry["iou"][c] for c in main)]
    cells = ["–" if value is None else f"{100 * value:.1f}" for value in values]
    return "\n".join(f"| {' | '.join(row)} |" for row in (names, ["---:"] * len(names), cells))


def _confusion(engine: Engine, domain: Domain, num_classes: int, *, progress: bool) -> Tensor:
    """The confusion matrix (C, C) of a test set: rows are the labels."""
    confusion = MulticlassConfusionMatrix(num_classes, ignore_index=IGNORE_INDEX, validate_args=False)
    confusion = confusion.to(engine.device)
    modes = {network: network.training for network in (engine.networks.student, engine.networks.teacher)}
    for network in modes:
        network.eval()
    own = range(rank(), len(domain.names), world_size())
    for i in tqdm(own, desc="evaluate", unit="image", leave=False, disable=not progress):
        label = domain.label(i)[None].to(engine.device)
        logits = predict(engine, domain.names[i], domain.image(i))[None]
        if logits.shape[-2:] != label.shape[-2:]:  # the image was resized, its label was not
            logits = F.interpolate(logits, label.shape[-2:], mode="bilinear", align_corners=False)
        confusion.update(logits.argmax(1), label)
    for network, mode in modes.items():
        network.train(mode)
    return all_sum(confusion.confmat).cpu()


def _starts(length: int, size: int, stride: int) -> list[int]:
    return [*range(0, length - size, stride), length - size]
