"""ClassMix: classes of one image on another one; and blocks of an image hidden, for masked consistency."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.common.scenes.labels import IGNORE_INDEX


class Mixed(NamedTuple):
    """Images (N, 3, H, W), labels (N, H, W), and each pixel's confidence (N, H, W)."""

    image: Tensor
    label: Tensor
    confidence: Tensor


def class_mask(label: Tensor, generator: torch.Generator) -> Tensor:
    """Where an image has one of half of its classes (rounded up), drawn at random: (H, W) -> bool (H, W).

    DACS' code draws from the label's values, "unlabelled" among them; here such pixels never leave their image.
    """
    classes = label.unique()
    classes = classes[classes != IGNORE_INDEX]
    order = torch.randperm(len(classes), generator=generator).to(label.device)
    return torch.isin(label, classes[order[: (len(classes) + 1) // 2]])


def class_mix(
    mask: Tensor, image: Tensor, label: Tensor, under: Tensor, pseudo: Tensor, confidence: Tensor
) -> Mixed:
    """Source pixels where the mask is set, with confidence 1, on target images with pseudo-labels.

    Args:
        mask: bool (N, H, W).
        image: source (N, 3, H, W).
        label: of the source, (N, H, W).
        under: target (N, 3, H, W).
        pseudo: labels of the target, (N, H, W).
        confidence: of the pseudo-labels, (N, H, W).
    """
    return Mixed(
        torch.where(mask[:, None], image, under),
        torch.where(mask, label, pseudo),
        torch.where(mask, 1.0, confidence),
    )


def block_mask(height: int, width: int, block: int, ratio: float, generator: torch.Generator) -> Tensor:
    """Which pixels stay, 1 or 0, (height, width): each block is hidden with probability `ratio`."""
    cells = (1, 1, -(-height // block), -(-width // block))
    stays = (torch.rand(cells, generator=generator) > ratio).float()
    return F.interpolate(stays, scale_factor=block, mode="nearest")[0, 0, :height, :width]
