r"""Losses with the class weights of Table 4b: of labelled and pseudo-labelled pixels, and the entropy of others.

.. math:: L = \frac{1}{N} \sum_i v_{y_i}\, q_i\, \ell_i \qquad\text{or}\qquad
          L = \sum_c v_c\, \frac{1}{n_c} \sum_{y_i = c} q_i\, \ell_i

with :math:`\ell` cross-entropy or focal loss, :math:`q` the confidence of pseudo-labels, :math:`N` the labelled pixels,
:math:`n_c` those of class c.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from classbalance_losses import Curriculum
from classbalance_losses.functional import (
    entropy_gradient_norms,
    entropy_loss,
    focal_loss,
    gbw_class_weights,
    image_frequency_weights,
    pixel_frequency_weights,
    solve_class_weights,
    weighted_cross_entropy_loss,
)
from classbalance_losses.state import BatchSums
from examples.common.distributed import all_sum
from examples.common.scenes.labels import IGNORE_INDEX
from examples.uda_gbw.config import Config, WeightingConfig
from examples.uda_gbw.data import Classes

_WORLD = "world"  # statistics and normalisers are those of all ranks


class ClassWeights(nn.Module):
    """Class weights v, for each batch or for all.

    ==================  =============================================================================================
    `scheme`            v
    ==================  =============================================================================================
    "none"              1
    "image_frequency"   images of the source / its images with class c (IF, as GBW's text has it)
    "pixel_frequency"   (N / (C n_c))^power over the source's pixels (PF, untempered by default: the printed 30.7 mIoU
                        of the paper suggests that, and not the square root of the work that it cites)
    "loss"              GBW's programme with the classes' mean losses in place of gradients: the first reading of LBW
    "curriculum"        1 for the classes with the smallest losses so far, 0 for the others, more of them with time:
                        the second reading, CCL
    "gbw"               GBW's programme with squared gradient norms, of one of five readings, for each batch
    ==================  =============================================================================================

    GBW's paper and code give frequencies and programme to every loss alike: labels, pseudo-labels, both heads of HRDA.
    So does this; each loss of a method is an instance of its own. With "focal" the programme's gradients stay those of
    the cross-entropy: the paper says nothing else.

    Attributes:
        class_weight: v of the last batch, (C,).

    Args:
        rule: of the configuration.
        classes: of the source.
    """

    class_weight: Tensor

    def __init__(self, rule: WeightingConfig, classes: Classes) -> None:
        super().__init__()
        self.rule = rule
        weight = torch.ones(len(classes.names))
        if rule.scheme == "image_frequency":
            weight = image_frequency_weights(classes.images, len(classes.counts))
        elif rule.scheme == "pixel_frequency":
            weight = pixel_frequency_weights(classes.pixels, power=rule.power)
        self.register_buffer("class_weight", weight)
        self.curriculum: Curriculum | None = None
        if rule.scheme == "curriculum":
            self.curriculum = Curriculum(
                start=rule.curriculum_start, increment=rule.curriculum_increment, every=rule.curriculum_every
            )

    def weigh(self, logits: Tensor, target: Tensor, confidence: Tensor | None = None) -> Tensor:
        """The class weights (C,) for a batch, which are kept in `class_weight`; no gradient.

        Args:
            logits: (N, C, H, W).
            target: class indices (N, H, W).
            confidence: q, (N, H, W), or None for 1.
        """
        rule = self.rule
        if rule.scheme in ("gbw", "loss"):
            weight = gbw_class_weights(
                logits,
                target,
                pixel_weight=confidence if rule.confidence else None,
                regularization=rule.regularization,
                gradient=rule.gradient if rule.scheme == "gbw" else "loss",
                classes=rule.classes,
                ignore_index=IGNORE_INDEX,
                process_group=_WORLD,
            )
            self.class_weight.copy_(weight)
        elif self.curriculum is not None:
            loss = F.cross_entropy(logits.detach(), target, ignore_index=IGNORE_INDEX, reduction="none")
            keep = target != IGNORE_INDEX
            self.class_weight.copy_(
                self.curriculum(BatchSums.of_maps(loss, target, keep, logits.shape[1], _WORLD))
            )
        return self.class_weight


class ClassWeightedLoss(ClassWeights):
    """A pixel loss with class weights: of `apply="pixel"` the mean above, of "class" the sum over classes, equation 2.

    With "curriculum" the mean is over the pixels of the active classes alone.
    """

    def forward(self, logits: Tensor, target: Tensor, confidence: Tensor | None = None) -> Tensor:
        """Logits (N, C, H, W), class indices (N, H, W) and q (N, H, W) -> the loss of all ranks together."""
        weight = self.weigh(logits, target, confidence)
        if self.rule.apply == "class":
            counts = label_counts(target, logits.shape[1])
            weight = torch.where(counts > 0, weight / counts.clamp(min=1), 0)
        elif self.curriculum is not None:  # the mean is over active pixels: the others are as if unlabelled
            active = per_pixel(weight, target) > 0
            target, weight = torch.where(active, target, IGNORE_INDEX), torch.ones_like(weight)
        weight = weight.clone()  # the next call overwrites the buffer, and this loss may go backward after it
        reduction = "sum" if self.rule.apply == "class" else "mean"
        if self.rule.pixel_loss == "focal":
            return focal_loss(
                logits,
                target,
                gamma=self.rule.gamma,
                alpha=weight,
                pixel_weight=confidence,
                ignore_index=IGNORE_INDEX,
                reduction=reduction,
                process_group=_WORLD,
            )
        return weighted_cross_entropy_loss(
            logits,
            target,
            weight,
            normalize="pixels",
            pixel_weight=confidence,
            ignore_index=IGNORE_INDEX,
            reduction=reduction,
            process_group=_WORLD,
        )


class ClassWeightedEntropy(ClassWeights):
    r"""The entropy of predictions without labels, with class weights.

    .. math:: L = \frac{1}{N \log C} \sum_i \sum_c v_c\, (-p_{ic} \log p_{ic})

    The paper's section 3.1 has a term for each class, :math:`-p_c \log p_c`, and a weight for each term; g of GBW's
    programme is the gradient of that term. With `entropy.weighting = "labels"` a pixel's whole entropy has the weight
    of its most probable class instead, and g is the gradient of the cross-entropy with that class.

    Log C is ADVENT's; it is in no gradient that the programme sees.

    Args:
        config: of the run.
        classes: of the source.
    """

    def __init__(self, config: Config, classes: Classes) -> None:
        super().__init__(config.weighting, classes)
        self.of_terms = config.entropy.weighting == "terms"
        self.regularization = config.entropy.regularization or config.weighting.regularization

    def weigh_terms(self, logits: Tensor) -> Tensor:
        """The weights (C,) of the terms, which are kept in `class_weight`; no gradient.

        A curriculum, which orders classes by the losses of labels, takes the most probable classes for labels.
        """
        scheme = self.rule.scheme
        if scheme == "curriculum":
            return self.weigh(logits, logits.detach().argmax(1))
        if scheme in ("gbw", "loss"):
            norms = entropy_gradient_norms(
                logits, gradient="loss" if scheme == "loss" else self.rule.gradient, process_group=_WORLD
            )
            self.class_weight.copy_(solve_class_weights(norms, regularization=self.regularization))
        return self.class_weight

    def forward(self, logits: Tensor) -> Tensor:
        """Logits (N, C, H, W) -> the loss of all ranks together."""
        if self.of_terms:
            value = entropy_loss(logits, self.weigh_terms(logits).clone(), process_group=_WORLD)
        else:
            seen = logits.detach().argmax(1)
            weight = per_pixel(self.weigh(logits, seen), seen)
            value = entropy_loss(logits, pixel_weight=weight, process_group=_WORLD)
        return value / math.log(logits.shape[1])


def label_counts(target: Tensor, num_classes: int) -> Tensor:
    """The pixels of each class on all ranks, (C,), of class indices (N, H, W)."""
    labels = torch.where(target == IGNORE_INDEX, num_classes, target)
    return all_sum(torch.bincount(labels.flatten(), minlength=num_classes + 1)[:num_classes])


def per_pixel(class_weight: Tensor, target: Tensor) -> Tensor:
    """Each pixel's weight, 0 where it is unlabelled: weights (C,) and class indices (N, H, W) -> (N, H, W)."""
    labelled = target != IGNORE_INDEX
    return torch.where(labelled, class_weight[torch.where(labelled, target, 0)], 0)
