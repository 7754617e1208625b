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

    Target images go the same way in training and in evaluation, with a label and without. Those of the source, which
    are in training alone, are described by their labels where others are by a prediction. The teacher that predicts for
    a caption is itself guided by the caption of the whole domain.

    Args:
        networks: the teacher, and the text encoder.
        captioner: makes the captions.
        domain: the caption that guides the teacher where it predicts for captions.
        fixed: texts that all images have in place of captions, one vector for each; empty where captions are used.
    """

    def __init__(
        self, networks: Networks, captioner: Captioner, domain: DomainCaptions, fixed: Sequence[str] = ()
    ) -> None:
        self._networks, self._captioner, self._domain, self._fixed = networks, captioner, domain, fixed

    def __call__(
        self,
        names: Sequence[str],
        inputs: list[Tensor],
        size: tuple[int, int],
        source_labels: Tensor | None = None,
    ) -> Text | None:
        """Names and network inputs of N images of a size -> their captions; None where guidance is off.

        `source_labels` (M, *size) are those of the first M images, which are the source's.
        """
        encode = self._networks.text
        if encode is None:
            return None
        if self._fixed:
            rows = encode(self._fixed).tokens[:, 0].expand(len(names), -1, -1)
            return Text(rows, torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device))

        @torch.no_grad()
        def predict() -> Tensor:
            known = 0 if source_labels is None else len(source_labels)
            text = encode(self._domain(names[known:], predict))
            prediction: Tensor = self._networks.teacher([x[known:] for x in inputs], text, size).argmax(1)
            return prediction if source_labels is None else torch.cat([source_labels, prediction])

        text: Text = encode(self._captioner(names, predict))
        return text
