"""What CPS, DePL and DHC share: two networks, each of which learns from the other's labels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from examples.synapse_ssl.config import Config
from examples.synapse_ssl.data.batches import Patches
from examples.synapse_ssl.methods.base import Method, Terms, halves, joined, label_of


class Pair(Method):
    """Two networks of one kind that differ in how they start; the mean of their logits is scored, as in the release.

    The released code starts them with two draws of Kaiming's initialisation (DePL: the second with Xavier's); here
    both start as MONAI's modules do.
    """

    scale: ClassVar[float] = 1.0

    def __init__(self, config: Config, class_counts: Tensor) -> None:
        super().__init__(config, class_counts)
        self.first, self.second = self.network(), self.network()

    @abstractmethod
    def compare(self, first: Tensor, second: Tensor, labelled: Patches) -> Terms:
        """The terms from both networks' logits of labelled and unlabelled patches together."""

    def terms(self, batch: Mapping[str, Patches], step: int) -> Terms:
        """Both networks on labelled and unlabelled patches together."""
        images = joined(batch)
        first, second = self.logits(self.first, images), self.logits(self.second, images)
        return self.compare(first, second, batch["labelled"])

    def supervise(self, logits: Tensor, labelled: Patches) -> Tensor:
        """The supervised term of one network, from its logits of labelled and unlabelled patches together."""
        return self.supervised(halves(logits, labelled)[0], label_of(labelled))

    def predict(self, images: Tensor) -> Tensor:
        """The mean of both networks' logits."""
        return (self.logits(self.first, images) + self.logits(self.second, images)) / 2
