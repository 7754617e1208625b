"""Self-training on mixed images, as in DACS: half of a source image's classes pasted onto a target image.

Tranheden et al., "DACS: Domain Adaptation via Cross-domain Mixed Sampling", WACV 2021; ClassMix is Olsson et al., WACV
2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.common.distributed import all_sum, joined_sum, world_size
from examples.common.scenes.labels import IGNORE_INDEX


class Mixed(NamedTuple):
    """Mixed images (N, 3, H, W), their labels and weights (N, H, W), and the mean r of all ranks."""

    image: Tensor
    label: Tensor
    weight: Tensor
    confident: Tensor


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


def confident_shares(confidence: Tensor, threshold: float, over: str) -> Tensor:
    """Of each image r, (N,): the share of its pixels (N, H, W) whose confidence exceeds the threshold.

    The paper's index reads as one share an image (`over` = "image"); DACS and DAFormer take one for the whole batch
    ("batch", here of all ranks).
    """
    shares = (confidence > threshold).float().flatten(1).mean(1)
    if over == "image":
        return shares
    return (all_sum(shares.mean()) / world_size()).expand(len(shares))


def mixed_loss(logits: Tensor, labels: Tensor, weight: Tensor, class_weight: Tensor | None = None) -> Tensor:
    """The weighted mean cross-entropy over the labelled pixels of all ranks.

    Args:
        logits: (N, C, H, W).
        labels: (N, H, W), the source's where that was pasted, the teacher's elsewhere.
        weight: (N, H, W), 1 on the source's pixels, r on the target's. The divisor is the number of pixels, not the sum
            of weights, so that a teacher without confidence gives no loss.
        class_weight: (C,), times which each pixel counts by its label; None: 1.

    Returns:
        A scalar; the mean of the ranks' gradients is the gradient of the joined batch.
    """
    pixel_loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="none")
    labelled = labels != IGNORE_INDEX
    if class_weight is not None:
        weight = weight * class_weight[torch.where(labelled, labels, 0)]
    count = all_sum(labelled.sum()).clamp(min=1)
    return joined_sum((weight * pixel_loss).sum() / count)
