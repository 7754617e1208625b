"""Counts of each class in each image of a batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from classbalance_losses._dispatch import Backend
from classbalance_losses.kernels.call import Labels


class ImageCounts(NamedTuple):
    """What the frequencies of the classes are made of; all int64."""

    pixel_counts: Tensor
    """Valid pixels of each class, (C,)."""
    image_counts: Tensor
    """Images that contain each class, (C,)."""
    image_pixel_counts: Tensor
    """Valid pixels, of any class, of the images that contain each class, (C,)."""


def image_class_counts(labels: Labels, backend: Backend) -> Tensor:
    """Return the number of pixels that count of each image and class, (N, C) of int64."""
    if not labels.target.shape[0]:
        return torch.zeros(0, labels.num_classes, dtype=torch.int64, device=labels.target.device)
    return backend.class_sums(labels, rows=labels.target.shape[0]).number


def summed_image_counts(count: Tensor) -> ImageCounts:
    """Return a batch's counts by pixel and by image, from those of each image and class (N, C)."""
    present = count > 0
    return ImageCounts(count.sum(0), present.sum(0), (present * count.sum(1, keepdim=True)).sum(0))
