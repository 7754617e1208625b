r"""AdvEnt: entropy maps of the target should look like those of the source.

Vu et al., "ADVENT", CVPR 2019, its adversarial variant. D sees the self-information of every class,
:math:`I_c = -p_c \log p_c`:

.. math:: L = L_{source} + \lambda\, \mathrm{BCE}(D(I_{target}), source), \qquad
          L_D = \tfrac12 \mathrm{BCE}(D(I_{source}), source) + \tfrac12 \mathrm{BCE}(D(I_{target}), target)

With GBW the terms that are minimised have a weight each, :math:`v_c I_c`, from the gradients of the target's. D gets
the source's maps with the same weights: with others it could tell the domains by their scale. The paper names entropies
as what it weighs, and neither of ADVENT's variants. `entropy.weighting = "labels"` weighs the source's loss alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from examples.common.scenes.batches import Images
from examples.uda_gbw.config import Config
from examples.uda_gbw.data import Classes
from examples.uda_gbw.methods.base import Method, labels_of, present
from examples.uda_gbw.methods.entropy import self_information
from examples.uda_gbw.networks.discriminators import SOURCE, TARGET, build_discriminator, frozen, says
from examples.uda_gbw.weighting import ClassWeightedEntropy


class Advent(Method):
    """Adversarial minimisation of the entropy of the target's predictions."""

    def __init__(self, config: Config, classes: Classes) -> None:
        super().__init__(config, classes)
        rule = config.adversarial
        self.discriminators["output"] = build_discriminator(len(classes.names), rule.channels)
        if "entropy" in self.losses:
            self.losses["entropy"] = ClassWeightedEntropy(config, classes)

    def loss_names(self) -> Sequence[str]:
        """The source's, and that of the terms where they are weighed."""
        return ("source", "entropy") if self.config.entropy.weighting == "terms" else ("source",)

    def step(self, source: Images, target: Images | None, number: int) -> dict[str, Tensor]:
        """See above."""
        judge, weight = self.discriminators["output"], self.config.adversarial.weight
        known = self.student.see(source.image).logits
        supervised = self.losses["source"](known, labels_of(source))
        supervised.backward()

        new = self.student.see(present(target).image).logits
        share = self._weights(new)
        with frozen(judge):
            fooled = says(judge, share * self_information(new), SOURCE)
            (weight * fooled).backward()

        told = says(judge, share * self_information(known.detach()), SOURCE) / 2
        told = told + says(judge, share * self_information(new.detach()), TARGET) / 2
        told.backward()

        loss = supervised + weight * fooled
        return {
            "loss": loss.detach(),
            "source": supervised.detach(),
            "adversarial": fooled.detach(),
            "discriminator": told.detach(),
        }

    def _weights(self, logits: Tensor) -> Tensor:
        """The weights (C, 1, 1) of the terms of the target's logits; ones where they are not weighed."""
        if "entropy" in self.losses:
            return self.losses["entropy"].weigh_terms(logits).clone().view(-1, 1, 1)
        return logits.new_ones(())
