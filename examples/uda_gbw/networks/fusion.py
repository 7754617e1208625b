"""HRDA (Hoyer, Dai and Van Gool, ECCV 2022): a context crop at half size and a detail crop at full size, fused."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.common.decoders import resized
from examples.common.windows import Box, covering_boxes
from examples.uda_gbw.networks.segmenter import Seen, Segmenter


class TwoResolutions(Segmenter):
    """One encoder and decoder for both resolutions, and an attention that chooses between them, for each class.

    Within the detail's window the logits are (1 - a) * context + a * detail, outside they are the context's. A training
    pass sees one window; in evaluation, and as a teacher, windows with an overlap of one half cover the image.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, attention: nn.Module) -> None:
        super().__init__(encoder, decoder)
        self.attention = attention

    def see(self, images: Tensor, box: Box | None = None) -> Seen:
        """A pass in training on one window.

        Raises:
            ValueError: there is no window.
        """
        if box is None:
            raise ValueError("a network of two resolutions needs the window of its detail crop, got none")
        context, attention, features = self._context(images)
        detail = super().see(images[box.place]).logits
        share = attention[box.place]
        fused = context.clone()
        fused[box.place] = (1 - share) * context[box.place] + share * detail
        return Seen(fused, features, detail, box)

    def forward(self, images: Tensor) -> Tensor:
        """A pass in evaluation: the windows' logits are averaged where they overlap."""
        context, attention, _ = self._context(images)
        detail = torch.zeros_like(context)
        count = context.new_zeros(context.shape[-2:])
        for box in covering_boxes(images.shape[-2], images.shape[-1]):
            detail[box.place] += super().see(images[box.place]).logits
            count[box.place] += 1
        return (1 - attention) * context + attention * (detail / count)

    def _context(self, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Logits and attention of the whole images, both (N, C, H, W), and their features."""
        height, width = images.shape[-2:]
        features = list(self.features(resized(images, (height // 2, width // 2))))
        logits = self.decode(features, (height, width))
        attention = resized(self.attention(features).sigmoid(), (height, width))
        return logits, attention, features
