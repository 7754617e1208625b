"""Scores on whole volumes: sliding window, Dice, recall and average surface distance of each organ.

Table 5's Dice and distance come from evaluation code that GenericSSL publishes, which DHC's resembles. With
`published=True` its convention is kept to the letter; the default departs from it in two points, both of which the
functions' docstrings state.
The table has no recall. It stands beside Dice to tell what a loss for rare classes buys: Dice punishes voxels too many
as it does voxels too few, recall the latter alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer
from monai.metrics import get_mask_edges, get_surface_distance
from torch import Tensor
from tqdm import tqdm

from examples.synapse_ssl.data.task import Cases, Size

MISSED = 128.0  # the distance of an organ that only one side has, in voxels: the published code's number


def dice_per_class(prediction: Tensor, label: Tensor, num_classes: int, *, published: bool = False) -> Tensor:
    """Dice of each class but the background in one volume, in percent: 2 |P ∩ L| / (|P| + |L|).

    A class that neither side has is a right answer: 100. The published code gives it 1 there, as if its scale ended at
    1, and so lowers the mean of a case that lacks an organ.

    Args:
        prediction: class indices, (D, H, W) of any integer type.
        label: the same, of the same shape.
        num_classes: C, the background included.
        published: 1 for a class that neither side has.

    Returns:
        (C - 1,) float64.

    Raises:
        ValueError: the shapes differ, or an index is outside 0 to C - 1.
    """
    both, predicted, labelled = _voxels(prediction, label, num_classes)
    either = predicted + labelled
    return torch.where(either > 0, 200 * both / either, 1.0 if published else 100.0)


def recall_per_class(prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Recall of each class but the background in one volume, in percent: |P ∩ L| / |L|.

    A class that the label lacks has none: nan, whatever the prediction holds.

    Args:
        prediction: class indices, (D, H, W) of any integer type.
        label: the same, of the same shape.
        num_classes: C, the background included.

    Returns:
        (C - 1,) float64.

    Raises:
        ValueError: the shapes differ, or an index is outside 0 to C - 1.
    """
    both, _, labelled = _voxels(prediction, label, num_classes)
    return 100 * both / labelled


def surface_distance_per_class(
    prediction: Tensor, label: Tensor, num_classes: int, *, published: bool = False
) -> Tensor:
    """Average surface distance of each class but the background in one volume, in voxels of its own grid.

    A surface is the voxels of a mask of which one of the six neighbours is outside it; outside the volume is outside
    the mask. The distance of a surface voxel is the Euclidean one to the nearest voxel of the other surface.

    The default is symmetric: the mean over the voxels of both surfaces. The published code takes medpy's `asd`, which
    is directed: the mean over the prediction's surface alone, so that a prediction of a few voxels on the label's
    surface scores 0. Where one side is empty the distance is 128, where both are, 0.

    Args:
        prediction: class indices, (D, H, W) of any integer type.
        label: the same, of the same shape.
        num_classes: C, the background included.
        published: the directed distance, from the prediction to the label.

    Returns:
        (C - 1,) float64.

    Raises:
        ValueError: the shapes differ, or an index is outside 0 to C - 1.
    """
    _check(prediction, label, num_classes)
    distances = []
    for number in range(1, num_classes):
        masks = prediction == number, label == number
        sides = sum(bool(mask.any()) for mask in masks)
        distances.append(_distance(*masks, symmetric=not published) if sides == 2 else sides * MISSED)
    return torch.tensor(distances, dtype=torch.float64)


@torch.no_grad()
def segment(
    predict: Callable[[Tensor], Tensor],
    image: Tensor,
    *,
    patch: Size,
    overlap: float | tuple[float, float, float] = 0.5,
) -> Tensor:
    """The classes (D, H, W) of a volume (1, D, H, W): the greatest mean of the windows' probabilities.

    Windows are (1, 1, *patch) on the image's device; the last ones end at the border. A volume that is smaller than
    the patch is padded with 0 about its centre, and the padding is cut off again. The published code keeps it and
    pads the label too, so that organs predicted in the padding count there.

    Args:
        predict: window (1, 1, *patch) -> logits (1, C, *patch), on any device.
        image: the volume.
        patch: (depth, height, width) of the windows.
        overlap: the share of a window that the next one repeats, one for each axis or for all: 1 - stride / patch. For
            the patch 64 x 128 x 128, DHC's strides (16 in depth, 32 in plane) are 0.75 and GenericSSL's (4 and 16) are
            (0.9375, 0.875, 0.875).
    """

    def probabilities(window: Tensor) -> Tensor:
        return predict(window).float().softmax(1)

    windows = SlidingWindowInferer(patch, overlap=overlap, device=image.device)
    mean: Tensor = windows(image[None], probabilities)
    return mean[0].argmax(0)


def evaluate(
    predict: Callable[[Tensor], Tensor],
    cases: Cases,
    classes: Sequence[str],
    *,
    patch: Size,
    overlap: float | tuple[float, float, float] = 0.5,
    published: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Score a network on volumes; see `segment` and the functions of one volume.

    Returns:
        Plain data for JSON. `dsc`, `recall` (percent) and `asd` (voxels) are means over cases, then over organs;
        `dsc_per_class` and so on have one number for each organ, in the order of `classes` without the background;
        `cases` has each volume's `name`, and of each score a number for each organ. A recall that there is not is None,
        and no part of a mean.

    Raises:
        ValueError: there is no case.
    """
    if not cases.names:
        raise ValueError("there is no case to evaluate")
    rows = []
    volumes = range(len(cases.names))
    for index in tqdm(volumes, "evaluate", unit="volume", leave=False, disable=not progress):
        prediction = segment(predict, cases.image(index), patch=patch, overlap=overlap)
        pair = prediction, cases.label(index), len(classes)
        rows.append(
            {
                "dsc": dice_per_class(*pair, published=published),
                "recall": recall_per_class(*pair),
                "asd": surface_distance_per_class(*pair, published=published),
            }
        )
    scores: dict[str, Any] = {}
    for key in rows[0]:
        organs = torch.stack([row[key] for row in rows]).nanmean(0)
        scores |= {key: _plain(organs.nanmean()[None])[0], f"{key}_per_class": _plain(organs)}
    named = zip(cases.names, rows, strict=True)
    plain = [{"name": name} | {key: _plain(value) for key, value in row.items()} for name, row in named]
    return scores | {"cases": plain}


def _voxels(prediction: Tensor, label: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each class but the background: voxels that both sides have, the prediction's, the label's; float64."""
    _check(prediction, label, num_classes)
    pairs = label.flatten().long() * num_classes + prediction.flatten().long()
    confusion = torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes).double()
    return confusion.diagonal()[1:], confusion.sum(0)[1:], confusion.sum(1)[1:]


def _plain(values: Tensor) -> list[float | None]:
    """Numbers for JSON, which has no nan."""
    return [None if math.isnan(value) else value for value in values.tolist()]


def _distance(prediction: Tensor, label: Tensor, *, symmetric: bool) -> float:
    """Between two masks, neither of them empty. MONAI's own mean raises its own deprecation warnings, so it is ours."""
    surfaces = get_mask_edges(prediction.cpu(), label.cpu())
    distances = [get_surface_distance(*surfaces)]
    if symmetric:
        distances.append(get_surface_distance(*reversed(surfaces)))
    return torch.cat(distances).double().mean().item()


def _check(prediction: Tensor, label: Tensor, num_classes: int) -> None:
    if prediction.shape != label.shape or prediction.ndim != 3:
        raise ValueError(
            f"prediction and label must be (D, H, W) of one shape, got {tuple(prediction.shape)} and "
            f"{tuple(label.shape)}"
        )
    for name, volume in (("prediction", prediction), ("label", label)):
        if volume.min() < 0 or volume.max() >= num_classes:
            raise ValueError(
                f"{name} must hold classes 0 to {num_classes - 1}, got {int(volume.min())} to {int(volume.max())}"
            )
