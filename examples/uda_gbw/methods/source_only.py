"""Source only: no adaptation; what every other method has to improve on."""

from __future__ import annotations

from torch import Tensor

from examples.common.scenes.batches import Images
from examples.uda_gbw.methods.base import Method, labels_of


class SourceOnly(Method):
    """The weighted loss of the source's labels."""

    reads_target = False

    def step(self, source: Images, target: Images | None, number: int) -> dict[str, Tensor]:
        """See above."""
        loss = self.losses["source"](self.student.see(source.image).logits, labels_of(source))
        loss.backward()
        return {"loss": loss.detach(), "source": loss.detach()}
