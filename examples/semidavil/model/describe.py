"""From the images of a batch to their captions' tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from examples.common.text import Text
from examples.semidavil.model.captions import Captioner, DomainCaptions
from examples.semidavil.model.network import Networks


class Describer:
    """Captions images, by way of the teacher's predictions where the captioner asks for them, and encodes the captions.

    Training and evaluation go the same way, labelled and unlabelled images too. The teacher that predicts for a caption
    is itself guided by the caption of the whole domain.
    """

    def __init__(self, networks: Networks, captioner: Captioner, domain: DomainCaptions) -> None:
        self._networks, self._captioner, self._domain = networks, captioner, domain

    def __call__(self, names: Sequence[str], inputs: list[Tensor], size: tuple[int, int]) -> Text | None:
        """Names and network inputs of N images of a size -> their captions; None where guidance is off."""
        encode = self._networks.text
        if encode is None:
            return None

        @torch.no_grad()
        def predict() -> Tensor:
            text = encode(self._domain(names, predict))
            prediction: Tensor = self._networks.teacher(inputs, text, size).argmax(1)
            return prediction

        text: Text = encode(self._captioner(names, predict))
        return text
