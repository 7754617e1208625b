r"""MinEnt: be sure of the target.

Vu, Jain, Bucher, Cord and Pérez, "ADVENT: Adversarial Entropy Minimization for Domain Adaptation in Semantic
Segmentation", CVPR 2019, its direct variant:

.. math:: L = L_{source} + \lambda \frac{1}{N \log C} \sum_i \sum_c v_c\, (-p_{ic} \log p_{ic})

With GBW each class's part has a weight of its own, from the gradient of that part: see `ClassWeightedEntropy`, which
has the rival reading too. Other schemes of weights apply alike.
"""

from __future__ import annotations

import math

from torch import Tensor

from examples.common.scenes.batches import Images
from examples.uda_gbw.config import Config
from examples.uda_gbw.data import Classes
from examples.uda_gbw.methods.base import Method, labels_of, present
from examples.uda_gbw.weighting import ClassWeightedEntropy


class Entropy(Method):
    """Direct minimisation of the entropy of the target's predictions."""

    weighted = ("source", "entropy")

    def __init__(self, config: Config, classes: Classes) -> None:
        super().__init__(config, classes)
        self.losses["entropy"] = ClassWeightedEntropy(config, classes)

    def step(self, source: Images, target: Images | None, number: int) -> dict[str, Tensor]:
        """See above."""
        supervised = self.losses["source"](self.student.see(source.image).logits, labels_of(source))
        supervised.backward()

        entropy = self.losses["entropy"](self.student.see(present(target).image).logits)
        (self.config.entropy.weight * entropy).backward()

        loss = supervised + self.config.entropy.weight * entropy
        return {"loss": loss.detach(), "source": supervised.detach(), "entropy": entropy.detach()}


def self_information(logits: Tensor) -> Tensor:
    """-p log p of each pixel and class, over log C: logits (N, C, H, W) -> the same shape."""
    log_p = logits.float().log_softmax(1)
    return -(log_p.exp() * log_p) / math.log(logits.shape[1])
