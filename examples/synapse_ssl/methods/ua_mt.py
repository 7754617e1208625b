"""UA-MT: a mean teacher that is heeded where it is sure.

Yu, Wang, Li, Fu and Heng, "Uncertainty-aware Self-ensembling Model for Semi-supervised 3D Left Atrium Segmentation",
MICCAI 2019, in the form that DHC's authors ported to Synapse:

    supervised    0.5 * (CE + Dice); with DyCE, 0.5 * (DyCE + Dice)
    unsupervised  sum over sure voxels and classes of (p student - p teacher)^2 / (2 * number of sure voxels)

A voxel is sure where the entropy of the teacher's mean softmax over T noisy passes is below (0.75 + 0.25 ramp) * ln 2.

Where the port leaves the paper, the default is the port, whose numbers Table 5 prints:

- ln 2 is the largest entropy of two classes. The port keeps it for 14, where it asks for far surer voxels;
  `ua_mt.entropy = "ln C"` is the sense of the paper. The divisor's 2 is the number of classes in the paper, too, and
  stays: it is a constant factor of the weight.
- The decay is min(1 - 1 / (n + 1), 0.99). The port gives it the epoch for n, so that the teacher is the student during
  the first epoch and 0.99 is reached after 99 epochs; `ua_mt.ema_counter = "iteration"` is the paper's.
- Parameters are averaged, buffers are not: the teacher's batch norm sees its own inputs. It stays in training mode, its
  dropout makes the passes differ as much as their noise does. The student is what is scored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor

from examples.common.sampling import generator
from examples.synapse_ssl.config import Config
from examples.synapse_ssl.data.batches import Patches
from examples.synapse_ssl.methods.base import Method, Terms, halves, joined, label_of

_NOISE, _LIMIT = 0.1, 0.2  # standard deviation, and what it is clamped to
_STREAM = 6  # of random numbers: the data's streams are others


class UaMt(Method):
    """A student, and a teacher that is the average of its parameters."""

    def __init__(self, config: Config, class_counts: Tensor) -> None:
        super().__init__(config, class_counts)
        self.student = self.network()
        self.teacher = deepcopy(self.student).requires_grad_(requires_grad=False)

    def terms(self, batch: Mapping[str, Patches], step: int) -> Terms:
        """The student on labelled and unlabelled patches together, the teacher on noisy unlabelled ones."""
        labelled = batch["labelled"]
        known, new = halves(self.logits(self.student, joined(batch)), labelled)
        target, sure = self._guidance(batch["unlabelled"].image, step)
        return Terms(
            self.supervised(known, label_of(labelled)),
            sure_distance(new.softmax(1), target, sure),
            {"sure": sure.float().mean()},
        )

    def predict(self, images: Tensor) -> Tensor:
        """The student's logits."""
        return self.logits(self.student, images)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Move the teacher towards the student."""
        decay = self.decay(step)
        for average, value in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            average.mul_(decay).add_(value, alpha=1 - decay)

    def decay(self, step: int) -> float:
        """What the teacher keeps of itself after a step."""
        rule = self.config.ua_mt
        count = self.epoch(step) if rule.ema_counter == "epoch" else step
        return min(1 - 1 / (count + 1), rule.ema_decay)

    def threshold(self, step: int) -> float:
        """The entropy, in nats, below which a voxel is sure."""
        classes = 2 if self.config.ua_mt.entropy == "ln 2" else self.num_classes
        return (0.75 + 0.25 * self.ramp(step)) * math.log(classes)

    @torch.no_grad()
    def _guidance(self, images: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The teacher's probabilities (N, C, *) of one noisy copy, and where T others are sure (N, *)."""
        first, *others = self._views(images, step)
        target = self.logits(self.teacher, first).softmax(1)
        mean = torch.zeros_like(target)
        for view in others:  # one after the other: a map of probabilities is large
            mean += self.logits(self.teacher, view).softmax(1) / len(others)
        return target, entropy(mean) < self.threshold(step)

    def _views(self, images: Tensor, step: int) -> list[Tensor]:
        """Noisy copies: one for the target, T for the uncertainty. The noise depends on the seed and the step alone."""
        draws = generator(self.config.training.seed, step, _STREAM)
        shape = (1 + self.config.ua_mt.passes, *images.shape)
        noise = (torch.randn(shape, generator=draws) * _NOISE).clamp(-_LIMIT, _LIMIT).to(images)
        return list(images + noise)


def entropy(probability: Tensor) -> Tensor:
    """Of the classes, in nats: (N, C, *) -> (N, *). The small term inside the logarithm is the published one."""
    return -(probability * (probability + 1e-6).log()).sum(1)


def sure_distance(student: Tensor, teacher: Tensor, sure: Tensor) -> Tensor:
    """Squared distance of probabilities (N, C, *), summed over the classes, half its mean over sure voxels (N, *).

    No sure voxel gives 0, in the graph.
    """
    distance = ((student - teacher) ** 2).sum(1)
    return torch.where(sure, distance, 0).sum() / (2 * sure.sum().clamp(min=1))
