"""Strong augmentation: colour and blur, the image alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from kornia.augmentation import ColorJitter, RandomGaussianBlur, RandomGrayscale
from torch import Tensor, nn


class StrongView:
    """Colours changed at random, some images grey, some blurred: the photometric part of UniMatch's strong view.

    By kornia, on the images' device. Each image has its own seed, so that its view depends neither on the batch that
    it comes in nor on any other random number.

    Args:
        strength: s; brightness, contrast and saturation change by factors from [1 − s, 1 + s], the hue by up to s/2 of
            half a turn.
    """

    def __init__(self, strength: float = 0.5) -> None:
        self._change = nn.Sequential(
            ColorJitter(strength, strength, strength, strength / 2, p=0.8),
            RandomGrayscale(p=0.2),
            RandomGaussianBlur((9, 9), (0.15, 1.15), p=0.5),
        )

    @torch.no_grad()
    def __call__(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] and N seeds -> images of the same shape, in [0, 1]."""
        views = []
        with torch.random.fork_rng(devices=[]):  # kornia draws from torch's own generator, on the CPU
            for image, seed in zip(images.split(1), seeds, strict=True):
                torch.default_generator.manual_seed(seed)  # manual_seed would restart the GPU's dropout too
                views.append(self._change(image))
        return torch.cat(views)
