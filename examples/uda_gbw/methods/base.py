"""What the methods share: the network that is trained, its losses, and what a step looks like."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from examples.common.scenes.batches import Images
from examples.uda_gbw.config import Config
from examples.uda_gbw.data import Classes
from examples.uda_gbw.networks.build import build_segmenter
from examples.uda_gbw.weighting import ClassWeightedLoss


class Method(nn.Module):
    """Networks and losses, and one training step. What it has to remember is a parameter or a buffer.

    `step` is the whole of a method: forward passes, losses, and `backward` of each. Losses of the library are those of
    all ranks together, others are means over this rank's share; `Engine` takes the mean of the ranks' gradients.

    Args:
        config: of the run.
        classes: of the source.
    """

    reads_target: ClassVar[bool] = True
    weighted: ClassVar[Sequence[str]] = ("source",)
    """The names of the losses that weigh classes; each follows its own weights."""

    def __init__(self, config: Config, classes: Classes) -> None:
        super().__init__()
        self.config = config
        self.student = build_segmenter(config, len(classes.names))
        self.discriminators = nn.ModuleDict()
        heads = ("", "_detail") if config.hrda.enabled else ("",)
        names = [name + head for name in self.loss_names() for head in heads]
        self.losses = nn.ModuleDict({name: ClassWeightedLoss(config.weighting, classes) for name in names})

    def loss_names(self) -> Sequence[str]:
        """The names of the losses that a configuration asks for."""
        return self.weighted

    @abstractmethod
    def step(self, source: Images, target: Images | None, number: int) -> dict[str, Tensor]:
        """Collect the gradients of step `number`, counted from 0; returns what to log, "loss" among it.

        `target` has no labels; it is None where `reads_target` is False.
        """

    def after_step(self) -> None:
        """What follows the optimiser's step: nothing, unless a method says so."""

    def predictor(self) -> nn.Module:
        """The network that is scored."""
        return self.student


def labels_of(images: Images) -> Tensor:
    """The labels of a labelled stream.

    Raises:
        ValueError: it has none.
    """
    if images.label is None:
        raise ValueError(f"the source images {', '.join(images.names)} have no labels")
    return images.label


def present(images: Images | None) -> Images:
    """The target's images of a method that reads them.

    Raises:
        ValueError: there are none.
    """
    if images is None:
        raise ValueError("this method needs images of the target, got none")
    return images
