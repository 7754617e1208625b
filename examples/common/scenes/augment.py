"""Weak augmentation: crop and flip, image and label together; draws come from a generator that it is given."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.common.scenes.domain import Size
from examples.common.scenes.labels import IGNORE_INDEX


def random_crop_flip(
    image: Tensor, label: Tensor | None, size: Size | None, generator: torch.Generator, *, flip: bool = True
) -> tuple[Tensor, Tensor | None]:
    """One window of `size`, mirrored half of the time.

    What an image lacks is padded, black and ignored, at its right and bottom.

    Args:
        image: (3, H, W).
        label: (H, W), or None: the same draws are made. Any constant shows where an image was padded.
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
