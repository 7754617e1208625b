r"""MinEnt: be sure of the target.

Vu, Jain, Bucher, Cord and Pérez, "ADVENT: Adversarial Entropy Minimization for Domain Adaptation in Semantic
Segmentation", CVPR 2019, its direct variant:

.. math:: L = L_{source} + \lambda \frac{1}{N} \sum_i v_{\hat y_i} \frac{-\sum_c p_{ic} \log p_{ic}}{\log C}

With GBW v are the weights of the classes that the network sees in the target, :math:`\hat y_i = \arg\max_c p_{ic}`. The
paper says that GBW weighs the entropy, not by which gradient; here it is that of the cross-entropy with :math:`\hat y`,
whose mean under p the entropy is. Other schemes of weights apply alike.
"""

from __future__ import annotations

import math

from torch import Tensor

from examples.common.scenes.batches import Images
from examples.uda_gbw.methods.base import Method, labels_of, present
from examples.uda_gbw.weighting import per_pixel


class Entropy(Method):
    """Direct minimisation of the entropy of the target's predictions."""

    weighted = ("source", "entropy")

    def step(self, source: Images, target: Images | None, number: int) -> dict[str, Tensor]:
        """See above."""
        supervised = self.losses["source"](self.student.see(source.image).logits, labels_of(source))
        supervised.backward()

        logits = self.student.see(present(target).image).logits
        seen = logits.detach().argmax(1)
        weight = per_pixel(self.losses["entropy"].weigh(logits, seen), seen)
        entropy = (weight * normalised_entropy(logits)).mean()
        (self.config.entropy.weight * entropy).backward()

        loss = supervised + self.config.entropy.weight * entropy
        return {"loss": loss.detach(), "source": supervised.detach(), "entropy": entropy.detach()}


def normalised_entropy(logits: Tensor) -> Tensor:
    """The entropy of each pixel, in [0, 1]: logits (N, C, H, W) -> (N, H, W)."""
    return self_information(logits).sum(1)


def self_information(logits: Tensor) -> Tensor:
    """-p log p of each pixel and class, over log C: logits (N, C, H, W) -> the same shape."""
    log_p = logits.float().log_softmax(1)
    return -(log_p.exp() * log_p) / math.log(logits.shape[1])
