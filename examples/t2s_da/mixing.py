"""Self-training on mixed images, as in DACS: half of a source image's classes pasted onto a target image.

Tranheden et al., "DACS: Domain Adaptation via Cross-domain Mixed Sampling", WACV 2021; ClassMix is Olsson et al., WACV
2021.
"""

from __future__ import annotations

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
