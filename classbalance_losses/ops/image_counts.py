"""Counts of each class in each image of a batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from classbalance_losses.ops.counts import class_counts


class ImageCounts(NamedTuple):
    """What the frequencies of the classes are made of; all int64."""

    pixel_counts: Tensor
    """Valid pixels of each class, (C,)."""
    image_counts: Tensor
    """Images that contain each class, (C,)."""
    image_pixel_counts: Tensor
    """Valid pixels, of any class, of the images that contain each class, (C,)."""


def image_class_counts(target: Tensor, keep: Tensor, num_classes: int) -> Tensor:
    """Return the number of kept pixels of each image and class, (N, C) of int64, for ``target`` (N, *)."""
    images = target.shape[0]
    image = torch.arange(images, dtype=torch.int64, device=target.device).view(-1, *[1] * (target.ndim - 1))
    return class_counts(image * num_classes + target, keep, images * num_classes).view(images, num_classes)


def summed_image_counts(target: Tensor, keep: Tensor, num_classes: int) -> ImageCounts:
    """Return the batch's counts by pixel and by image."""
    count = image_class_counts(target, keep, num_classes)
    present = count > 0
    return ImageCounts(count.sum(0), present.sum(0), (present * count.sum(1, keepdim=True)).sum(0))
