"""What the methods share: the schedule of the unsupervised term, mixed precision, the labelled and unlabelled batch."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from examples.synapse_ssl.config import Config
from examples.synapse_ssl.data.batches import Patches
from examples.synapse_ssl.losses import SupervisedLoss
from examples.synapse_ssl.networks import build_network

_AMP = {"off": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Terms(NamedTuple):
    """The two terms of a method's loss, and what else to log."""

    supervised: Tensor
    unsupervised: Tensor
    logged: Mapping[str, Tensor]


class Method(nn.Module):
    """Networks, buffers and the loss of a step: supervised + weight(epoch) * unsupervised.

    A method writes `terms` and `predict`, and `after_step` where something follows the optimiser's step. Everything
    that it has to remember is a parameter or a buffer.

    Args:
        config: of the run.
        class_counts: (C,) voxels of each class in the labelled volumes.
    """

    scale: ClassVar[float] = 0.5  # of pixel loss + Dice
    uses_unlabelled: ClassVar[bool] = True

    def __init__(self, config: Config, class_counts: Tensor) -> None:
        super().__init__()
        self.config, self.num_classes = config, len(class_counts)
        self.supervised = SupervisedLoss(config.supervised, self.scale)

    @abstractmethod
    def terms(self, batch: Mapping[str, Patches], step: int) -> Terms:
        """The terms of one step, from the streams "labelled" and "unlabelled"; `step` counts from 0."""

    @abstractmethod
    def predict(self, images: Tensor) -> Tensor:
        """Logits (N, C, D, H, W) of images (N, 1, D, H, W)."""

    def after_step(self, step: int) -> None:
        """What follows the optimiser's step `step`: nothing, unless a method says so."""

    def loss(self, batch: Mapping[str, Patches], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and its parts to log."""
        self.supervised.set_progress(step / self.config.training.iterations)
        terms = self.terms(batch, step)
        weight = self.weight(step)
        total = terms.supervised + weight * terms.unsupervised
        parts = {"supervised": terms.supervised.detach(), "unsupervised": terms.unsupervised.detach()}
        return total, parts | {"weight": torch.tensor(weight)} | dict(terms.logged)

    def weight(self, step: int) -> float:
        """Of the unsupervised term: it grows with the epochs, where the configuration lets it."""
        rule = self.config.unsupervised
        return rule.weight * self.ramp(step) if rule.ramp else rule.weight

    def epoch(self, step: int) -> int:
        """The epoch of a step, both from 0."""
        return step // self.config.training.steps_per_epoch

    def ramp(self, step: int) -> float:
        """exp(-5 (1 - t)^2), t the epoch's share of all epochs (Laine and Aila, 2017)."""
        share = self.epoch(step) / self.config.training.epochs
        return math.exp(-5 * (1 - min(share, 1.0)) ** 2)

    def network(self, heads: int = 1) -> nn.Module:
        """A new network."""
        return build_network(self.config.model, self.num_classes, self.config.data.patch, heads=heads)

    def logits(self, network: Callable[..., Tensor], images: Tensor, *others: Tensor) -> Tensor:
        """A network's output as float32: losses are computed outside of mixed precision."""
        amp = self.config.training.amp
        with torch.autocast(images.device.type, _AMP[amp], enabled=amp != "off"):
            output = network(images, *others)
        return output.float()


def joined(batch: Mapping[str, Patches]) -> Tensor:
    """The labelled images, then the unlabelled ones."""
    return torch.cat([batch["labelled"].image, batch["unlabelled"].image])


def halves(logits: Tensor, labelled: Patches) -> tuple[Tensor, Tensor]:
    """The labelled and the unlabelled part of a joined batch."""
    return logits[: len(labelled.image)], logits[len(labelled.image) :]


def label_of(patches: Patches) -> Tensor:
    """The labels of labelled patches.

    Raises:
        ValueError: they have none.
    """
    if patches.label is None:
        raise ValueError(f"the labelled patches of {', '.join(patches.names)} have no labels")
    return patches.label
