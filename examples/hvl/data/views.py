"""Views that training makes of a batch: hidden pixels, and boxes pasted from one image into the next."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_SMALLEST, _LARGEST = 0.1, 0.5  # share of the image that a pasted box covers
_ASPECT = 2.0  # its longest side over its shortest one


def hide(images: Tensor, hidden: Tensor) -> Tensor:
    """The images (N, 3, H, W) with the mean colour of each where `hidden` (N, H, W) is true."""
    colour = images.mean((2, 3), keepdim=True)
    return torch.where(hidden.unsqueeze(1), colour, images)


def labels_at_size(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Labels (N, H, W) at the size of a feature map, by nearest neighbour, which never mixes two classes."""
    return F.interpolate(labels[:, None].float(), size=tuple(size), mode="nearest")[:, 0].long()


def boxes(size: tuple[int, int], seeds: Sequence[int]) -> Tensor:
    """A box for each seed, (N, H, W), True inside: a tenth to half of the image, up to twice longer."""
    height, width = size
    inside = torch.zeros(len(seeds), height, width, dtype=torch.bool)
    for row, seed in zip(inside, seeds, strict=True):
        share, aspect, top, left = torch.rand(4, generator=torch.Generator().manual_seed(seed)).tolist()
        area = (_SMALLEST + share * (_LARGEST - _SMALLEST)) * height * width
        ratio = _ASPECT ** (2 * aspect - 1)
        h = min(height, round((area * ratio * height / width) ** 0.5))
        w = min(width, round((area / ratio * width / height) ** 0.5))
        y, x = int(top * (height - h + 1)), int(left * (width - w + 1))
        row[y : y + h, x : x + w] = True
    return inside


def pasted(values: Tensor, inside: Tensor) -> Tensor:
    """Values (N, *, H, W), in the boxes (N, H, W) those of the next image of the batch."""
    box = inside if values.ndim == inside.ndim else inside.unsqueeze(1)
    return torch.where(box, values.roll(-1, 0), values)
