"""Weak augmentation (crop and flip, image and label together) and strong augmentation (colour and blur, image alone).

The paper names weak and strong views without listing them; these are the usual ones (FixMatch, DAFormer). Both draw
from a generator that they are given, which keeps resumed runs exact; the strong one works on batches, on their device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.semidavil.data.domain import Size
from examples.semidavil.data.labels import IGNORE_INDEX

_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601


def random_crop_flip(
    image: Tensor, label: Tensor | None, size: Size | None, generator: torch.Generator, *, flip: bool = True
) -> tuple[Tensor, Tensor | None]:
    """One window of `size`, mirrored half of the time.

    What an image lacks is padded, black and ignored, at its right and bottom.

    Args:
        image: (3, H, W).
        label: (H, W), or None for an unlabelled image: the same draws are made.
        size: (height, width) of the window; None takes the whole image.
        generator: where the draws come from.
        flip: whether to mirror at all.
    """
    height, width = size or image.shape[-2:]
    padding = (0, max(width - image.shape[-1], 0), 0, max(height - image.shape[-2], 0))
    image = F.pad(image, padding)
    top, left = (
        int(torch.randint(have - want + 1, (1,), generator=generator))
        for have, want in zip(image.shape[-2:], (height, width), strict=True)
    )
    window = (..., slice(top, top + height), slice(left, left + width))
    mirrored = flip and bool(torch.rand(1, generator=generator) < 0.5)

    def cut(plane: Tensor) -> Tensor:
        return plane[window].flip(-1) if mirrored else plane[window]

    return cut(image), None if label is None else cut(F.pad(label, padding, value=IGNORE_INDEX))


def strong(images: Tensor, generator: torch.Generator, *, strength: float = 0.5) -> Tensor:
    """Brightness, contrast and saturation changed at random, some images grey, some blurred.

    Args:
        images: (N, 3, H, W) in [0, 1].
        generator: a CPU generator; each image gets draws of its own.
        strength: s; the factors are drawn from [1 − s, 1 + s].

    Returns:
        Images of the same shape, in [0, 1].
    """
    draws = torch.rand(6, len(images), 1, 1, 1, generator=generator).to(images.device, images.dtype)
    brightness, contrast, saturation = 1 + strength * (2 * draws[:3] - 1)
    images = images * brightness
    images = _blend(images, _grey(images).mean((-2, -1), keepdim=True), contrast)
    saturation = torch.where(draws[3] < 0.2, 0, saturation)
    images = _blend(images, _grey(images), saturation).clamp(0, 1)
    return torch.where(draws[4] < 0.5, blur(images, 0.15 + draws[5]), images)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur (N, 3, H, W) with a standard deviation (N, 1, 1, 1) for each image, in pixels."""
    radius = 4
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma.view(-1, 1)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(images.shape[1], 0)  # (N * 3, 9)
    flat = images.reshape(1, -1, *images.shape[-2:])
    groups = flat.shape[1]
    flat = F.conv2d(
        F.pad(flat, (radius, radius, 0, 0), mode="replicate"), kernel[:, None, None], groups=groups
    )
    flat = F.conv2d(
        F.pad(flat, (0, 0, radius, radius), mode="replicate"), kernel[:, None, :, None], groups=groups
    )
    return flat.view_as(images)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return other + factor * (images - other)


def _grey(images: Tensor) -> Tensor:
    weights = torch.tensor(_GREY, device=images.device, dtype=images.dtype).view(3, 1, 1)
    return (images * weights).sum(1, keepdim=True)
