"""The weak view of an image: scaled, cropped and mirrored at random; and, of a labelled one, its colours changed."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from kornia.augmentation import ColorJitter
from torch import Tensor

from examples.common.scenes.augment import random_crop_flip
from examples.common.scenes.domain import Size

_JITTERED = 0.8  # of the images, as in the strong view


class WeakView:
    """An `Augment` of streams; all its draws come from the generator that it is given.

    Args:
        scale: s; the image is first resized by a factor that is uniform in [1/s, s]. With 1 there is no draw.
        jitter: j; brightness, contrast and saturation of four images in five change by factors from [1 − j, 1 + j], the
            hue by up to j/2 of half a turn. With 0 there is no draw.
    """

    def __init__(self, scale: float = 1.0, jitter: float = 0.0) -> None:
        self.scale = scale
        self.colours: Any = ColorJitter(jitter, jitter, jitter, jitter / 2, p=_JITTERED) if jitter else None

    def __call__(
        self,
        image: Tensor,
        label: Tensor,
        size: Size | None,
        generator: torch.Generator,
        *,
        flip: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """One window of `size` of an image (3, H, W) and its label (H, W)."""
        if self.scale != 1:
            low = 1 / self.scale
            factor = low + (self.scale - low) * float(torch.rand(1, generator=generator))
            image, label = scaled(image, label, factor)
        image, label = random_crop_flip(image, label, size, generator, flip=flip)
        if self.colours is None:
            return image, label
        seed = int(torch.randint(2**62, (1,), generator=generator))
        with torch.random.fork_rng(devices=[]):  # kornia draws from torch's own generator, on the CPU
            torch.default_generator.manual_seed(seed)
            return self.colours(image[None])[0], label


def scaled(image: Tensor, label: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """An image and its label, both sides times a factor; the label to the nearest, which never mixes two classes."""
    size = [max(round(side * factor), 1) for side in label.shape]
    resized = F.interpolate(
        image[None], size=size, mode="bilinear", align_corners=False, antialias=factor < 1
    )
    nearest = F.interpolate(label[None, None].float(), size=size, mode="nearest-exact")
    return resized[0], nearest[0, 0].long()
