"""Pictures of images, labels and predictions side by side.

They stay in a run's folder: they show images and labels of a data set, which are not ours to publish.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from examples.common.training import write_atomically

Picture = NDArray[np.uint8]  # (H, W, 3)
_GAP = 4  # pixels between the pictures


def photo_of(image: Tensor) -> Picture:
    """An image (3, H, W) in [0, 1]."""
    return image.mul(255).round().byte().permute(1, 2, 0).numpy()


def coloured(label: Tensor, colours: NDArray[np.uint8]) -> Picture:
    """Class indices (H, W) in their colours (C, 3), black where no class is given."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colours)] = colours
    return table[label.numpy()]


def of_size(picture: Picture, size: Sequence[int]) -> Picture:
    """A picture at another (height, width), by nearest neighbour."""
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.NEAREST))


def joined(parts: Sequence[Picture], axis: int) -> Picture:
    """Pictures below (0) or beside (1) each other, with gaps."""
    shape = list(parts[0].shape)
    shape[axis] = _GAP
    gap = np.full(shape, 255, np.uint8)
    return np.concatenate([part for picture in parts for part in (picture, gap)][:-1], axis)


def save_picture(picture: Picture, path: Path) -> None:
    """Write a PNG."""
    write_atomically(path, lambda partial: Image.fromarray(picture).save(partial, format="PNG"))
