"""Dynamic re-weighting: more weight for the classes of which the teacher is unsure (section 3.5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.common.distributed import all_sum
from examples.t2s_da.config import ReweightingConfig


class ClassWeights(nn.Module):
    r"""Equations 17 and 18: :math:`w^*_c = (1 - \mathrm{conf}_c)^\beta / \sum_k (1 - \mathrm{conf}_k)^\beta`.

    The confidences are means over the pixels of the images of all ranks; the maximum that equation 17 divides by
    cancels. As printed they are the batch's (`momentum` 0). A class that no pixel is labelled with keeps its last one
    ("carry", from 0, the largest weight), counts as 0 ("max"), or gets no weight ("exclude"); the paper does not say.

    `PullLoss` has the same weights, from the features' pixels; equation 18 asks for the image's.

    Args:
        rule: the options.
        num_classes: C.
    """

    class_confidence: Tensor
    class_weight: Tensor

    def __init__(self, rule: ReweightingConfig, num_classes: int) -> None:
        super().__init__()
        self.rule = rule
        self.register_buffer("class_confidence", torch.zeros(num_classes))
        self.register_buffer("class_weight", torch.full((num_classes,), 1 / num_classes))

    @torch.no_grad()
    def update(self, probabilities: Tensor) -> Tensor:
        """w* (C,) after the teacher's probabilities (N, C, H, W) of target images."""
        if self.rule.of == "none":
            return self.class_weight
        confidence, labels = (x.flatten() for x in probabilities.max(1))
        classes = len(self.class_weight)
        count = all_sum(torch.bincount(labels, minlength=classes))
        total = all_sum(torch.bincount(labels, confidence.double(), minlength=classes))
        present = count > 0
        batch = (total / count.clamp(min=1)).float()
        moved = self.class_confidence.lerp(batch, 1 - self.rule.momentum)
        known = present | (self.rule.absent == "max")
        self.class_confidence.copy_(torch.where(known, moved, self.class_confidence))
        included = present | (self.rule.absent != "exclude")
        doubt = torch.where(included, (1 - self.class_confidence).clamp(min=0), 0)
        doubt = doubt / doubt.amax().clamp(min=torch.finfo(doubt.dtype).tiny)
        sure = torch.where(included, (doubt == 0).all(), False)  # of all alike, equal weights
        weight = torch.where(included, doubt**self.rule.power, 0) + sure
        self.class_weight.copy_(weight / weight.sum())
        return self.class_weight
