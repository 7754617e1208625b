"""What is drawn to change images: ClassMix's classes (Olsson et al., WACV 2021), and MIC's hidden blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.common.scenes.labels import IGNORE_INDEX


def class_masks(labels: Tensor, seeds: Sequence[int]) -> Tensor:
    """Of each label map (N, H, W), the pixels of half of its classes, rounded up; bool of the same shape.

    Each map's classes are drawn by its own seed, so that they depend on neither the batch nor the rank. The ignored
    label is no class.
    """
    masks = []
    for label, seed in zip(labels, seeds, strict=True):
        classes = label.unique()
        classes = classes[classes != IGNORE_INDEX]
        order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed))
        chosen = classes[order[: (len(classes) + 1) // 2].to(classes.device)]
        masks.append(torch.isin(label, chosen))
    return torch.stack(masks)


def visible_blocks(size: Sequence[int], block: int, ratio: float, seeds: Sequence[int]) -> Tensor:
    """MIC's masks (N, 1, *size) of 0 and 1 (Hoyer et al., CVPR 2023): each block is hidden with probability `ratio`."""
    height, width = size
    cells = (1, -(-height // block), -(-width // block))
    draws = [torch.rand(cells, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    stays = (torch.stack(draws) >= ratio).float()
    return F.interpolate(stays, scale_factor=block, mode="nearest")[..., :height, :width]
