r"""AdaptSegNet: outputs of the target should look like those of the source.

Tsai, Hung, Schulter, Sohn, Yang and Chandraker, "Learning to Adapt Structured Output Space for Semantic Segmentation",
CVPR 2018. D sees the softmax of the logits. With `adversarial.feature_level` a second classifier on the next to last
feature map, with its own loss of the source and its own D, adapts the features below it ("multi-level"):

.. math:: L = \sum_k \lambda^k_{seg} L^k_{source} + \lambda^k_{adv}\, \mathrm{BCE}(D^k(P^k_{target}), source)

GBW weighs the source's loss of both levels, each by its own gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from examples.common.decoders import resized
from examples.common.models import PointwiseConv
from examples.common.scenes.batches import Images
from examples.uda_gbw.config import Config
from examples.uda_gbw.data import Classes
from examples.uda_gbw.methods.base import Method, labels_of, present
from examples.uda_gbw.networks.discriminators import SOURCE, TARGET, build_discriminator, frozen, says


class AdaptSegNet(Method):
    """Adversarial adaptation of the output, and of an output of coarse features."""

    def __init__(self, config: Config, classes: Classes) -> None:
        super().__init__(config, classes)
        rule, number = config.adversarial, len(classes.names)
        self.levels = {"source": (1.0, rule.weight)}  # of each level: the weights of its loss and of its D
        self.discriminators["source"] = build_discriminator(number, rule.channels)
        if rule.feature_level:
            self.levels["feature"] = (rule.auxiliary_weight, rule.feature_weight)
            self.discriminators["feature"] = build_discriminator(number, rule.channels)
            channels = self.student.encoder.channels[-2]
            self.student.auxiliary = PointwiseConv(channels, number, bias=True)

    def loss_names(self) -> Sequence[str]:
        """One of each level."""
        return ("source", "feature") if self.config.adversarial.feature_level else ("source",)

    def step(self, source: Images, target: Images | None, number: int) -> dict[str, Tensor]:
        """See above."""
        known = self._outputs(source.image)
        supervised = {level: self.losses[level](logits, labels_of(source)) for level, logits in known.items()}
        loss = torch.stack([self.levels[level][0] * value for level, value in supervised.items()]).sum()
        loss.backward()

        new = self._outputs(present(target).image)
        with frozen(self.discriminators):
            fooled = [
                self.levels[k][1] * says(self.discriminators[k], p.softmax(1), SOURCE) for k, p in new.items()
            ]
            adversarial = torch.stack(fooled).sum()
            adversarial.backward()

        told = []
        for level, judge in self.discriminators.items():
            told.append(says(judge, known[level].detach().softmax(1), SOURCE) / 2)
            told.append(says(judge, new[level].detach().softmax(1), TARGET) / 2)
        discriminator = torch.stack(told).sum()
        discriminator.backward()
        return {
            "loss": (loss + adversarial).detach(),
            **{level: value.detach() for level, value in supervised.items()},
            "adversarial": adversarial.detach(),
            "discriminator": discriminator.detach(),
        }

    def _outputs(self, images: Tensor) -> dict[str, Tensor]:
        """The logits (N, C, H, W) of each level."""
        seen = self.student.see(images)
        outputs = {"source": seen.logits}
        if "feature" in self.levels:
            outputs["feature"] = resized(
                self.student.auxiliary(seen.features[-2]), images.shape[-2:]
            ).contiguous()
        return outputs
