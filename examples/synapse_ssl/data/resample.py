"""Volumes at another size: trilinear images, nearest labels, without smoothing before, as the published code does."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from examples.synapse_ssl.data.config import Size


def resize_image(image: Tensor, size: Size | None) -> Tensor:
    """An image (D, H, W) of floats at `size`; None keeps its own."""
    if size is None or tuple(image.shape) == tuple(size):
        return image
    return F.interpolate(image[None, None], size=size, mode="trilinear", align_corners=False)[0, 0]


def resize_label(label: Tensor, size: Size | None) -> Tensor:
    """A label (D, H, W) of uint8 at `size`; None keeps its own."""
    if size is None or tuple(label.shape) == tuple(size):
        return label
    return F.interpolate(label[None, None].float(), size=size, mode="nearest")[0, 0].byte()
