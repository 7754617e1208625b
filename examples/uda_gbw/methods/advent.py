r"""AdvEnt: entropy maps of the target should look like those of the source.

Vu et al., "ADVENT", CVPR 2019, its adversarial variant. D sees the self-information :math:`-p \log p` of every class:

.. math:: L = L_{source} + \lambda\, \mathrm{BCE}(D(I_{target}), source), \qquad
          L_D = \tfrac12 \mathrm{BCE}(D(I_{source}), source) + \tfrac12 \mathrm{BCE}(D(I_{target}), target)

The one term with classes is the source's; it is what GBW weighs.
"""

from __future__ import annotations

from torch import Tensor

from examples.common.scenes.batches import Images
from examples.uda_gbw.config import Config
from examples.uda_gbw.data import Classes
from examples.uda_gbw.methods.base import Method, labels_of, present
from examples.uda_gbw.methods.entropy import self_information
from examples.uda_gbw.networks.discriminators import SOURCE, TARGET, build_discriminator, frozen, says


class Advent(Method):
    """Adversarial minimisation of the entropy of the target's predictions."""

    def __init__(self, config: Config, classes: Classes) -> None:
        super().__init__(config, classes)
        rule = config.adversarial
        self.discriminators["output"] = build_discriminator(len(classes.names), rule.channels)

    def step(self, source: Images, target: Images | None, number: int) -> dict[str, Tensor]:
        """See above."""
        judge, weight = self.discriminators["output"], self.config.adversarial.weight
        known = self.student.see(source.image).logits
        supervised = self.losses["source"](known, labels_of(source))
        supervised.backward()

        new = self.student.see(present(target).image).logits
        with frozen(judge):
            fooled = says(judge, self_information(new), SOURCE)
            (weight * fooled).backward()

        told = says(judge, self_information(known.detach()), SOURCE) / 2
        told = told + says(judge, self_information(new.detach()), TARGET) / 2
        told.backward()

        loss = supervised + weight * fooled
        return {
            "loss": loss.detach(),
            "source": supervised.detach(),
            "adversarial": fooled.detach(),
            "discriminator": told.detach(),
        }
