"""The labelled patches alone, a bound for the other methods: from below with their labels, from above with all labels.

Table 5's "Supervised" row is the latter, `data.budget=1.0`. DyCE takes the place of cross-entropy beside Dice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from examples.synapse_ssl.config import Config
from examples.synapse_ssl.data.batches import Patches
from examples.synapse_ssl.methods.base import Method, Terms, label_of


class Supervised(Method):
    """One network on 0.5 * (CE + Dice), the supervised term of UA-MT."""

    uses_unlabelled: ClassVar[bool] = False

    def __init__(self, config: Config, class_counts: Tensor) -> None:
        super().__init__(config, class_counts)
        self.student = self.network()

    def terms(self, batch: Mapping[str, Patches], step: int) -> Terms:
        """The supervised term; the other one is 0."""
        labelled = batch["labelled"]
        value = self.supervised(self.logits(self.student, labelled.image), label_of(labelled))
        return Terms(value, value.new_zeros(()), {})

    def predict(self, images: Tensor) -> Tensor:
        """The network's logits."""
        return self.logits(self.student, images)
