"""ClassMix: classes of one image on another one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Mixed(NamedTuple):
    """Images (N, 3, H, W), labels (N, H, W), and each pixel's confidence (N, H, W)."""

    image: Tensor
    label: Tensor
    confidence: Tensor


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
