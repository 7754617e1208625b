"""Hiding all pixels of one class of an image, as L_mask and L_align ask for (section 3, segmentation supervision)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from examples.hvl.data.views import labels_at_size


def occluded(
    labels: Tensor, size: Sequence[int], seeds: Sequence[int], ignore_index: int
) -> tuple[Tensor, Tensor]:
    """One class of each image, drawn at random among those that a feature map of this size shows.

    Args:
        labels: class indices or pseudo-labels (N, H, W).
        size: of the feature map.
        seeds: one for each image.
        ignore_index: what has no class. An image of nothing else keeps all its pixels.

    Returns:
        `hidden` (N, H, W), True at the pixels of the class; and `cells` (N, h, w), the class in the cells of the map
        that lie on it, `ignore_index` elsewhere.
    """
    cells = labels_at_size(labels, size)
    hidden = torch.zeros_like(labels, dtype=torch.bool)
    kept = torch.full_like(cells, ignore_index)
    for image, seed in enumerate(seeds):
        shown = cells[image]
        present = torch.unique(shown[shown != ignore_index])
        if not len(present):
            continue
        drawn = torch.randint(len(present), (), generator=torch.Generator().manual_seed(seed))
        chosen = present[drawn]
        hidden[image] = labels[image] == chosen
        kept[image] = torch.where(shown == chosen, chosen, ignore_index)
    return hidden, kept
