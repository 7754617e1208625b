"""HRDA (Hoyer, Dai and Van Gool, ECCV 2022): the image at half its size, a window of it at full size, and their fusion.

The pull loss sees the low-resolution branch alone (section 4.1, "Implementation details"), and so does DAFormer's
feature distance.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.common.decoders import resized
from examples.common.windows import Box, covering_boxes
from examples.t2s_da.config import ModelConfig
from examples.t2s_da.decoders import PyramidDecoder
from examples.t2s_da.model import Judged, Look, Seen, Segmenter, draw_weights

_ATTENTION = 3  # whose initial weights are drawn apart


class TwoResolutions(Segmenter):
    """One encoder, decoder and classifier for both resolutions, and an attention a that chooses between them by class.

    Within a window the logits are (1 - a) * low + a * high, outside they are the low resolution's. A pass in training
    sees one window; what is judged or predicted is covered by windows with an overlap of one half.
    """

    def __init__(self, config: ModelConfig, num_classes: int, seed: int, *, pulls: bool) -> None:
        super().__init__(config, num_classes, seed, pulls=pulls)
        draw_weights(seed, _ATTENTION)
        self.attention = nn.Sequential(
            PyramidDecoder(self.vision.channels, config.width), nn.Conv2d(config.width, num_classes, 1)
        )

    def context(self, images: Tensor) -> Tensor:
        """The low-resolution branch's images: of half the sides."""
        return resized(images, (images.shape[-2] // 2, images.shape[-1] // 2))

    def look(self, images: Tensor, box: Box | None = None) -> Look:
        """A pass in training on one window.

        Raises:
            ValueError: there is no window.
        """
        if box is None:
            raise ValueError(
                "a network of two resolutions needs the window that it sees at full size, got none"
            )
        seen, low, share = self._low(images)
        high = self._high(images, box)
        fused = low.clone()
        fused[box.place] = (1 - share[box.place]) * low[box.place] + share[box.place] * high
        return Look(seen, fused, high)

    def judge(self, images: Tensor) -> Judged:
        """What is said of images with windows all over them, whose logits are averaged where they overlap."""
        seen, low, share = self._low(images)
        total, count = torch.zeros_like(low), low.new_zeros(low.shape[-2:])
        for box in covering_boxes(images.shape[-2], images.shape[-1]):
            total[box.place] += self._high(images, box)
            count[box.place] += 1
        return Judged(seen, ((1 - share) * low + share * (total / count)).float())

    def _low(self, images: Tensor) -> tuple[Seen, Tensor, Tensor]:
        """What the low resolution shows, and its logits and attention at the images' size, (N, C, H, W)."""
        size = images.shape[-2:]
        seen = self.see(images)
        share = resized(self.attention(seen.maps), size).sigmoid()
        return seen, resized(self.classify(seen), size), share

    def _high(self, images: Tensor, box: Box) -> Tensor:
        """Logits (N, C, h, w) of a window at full size."""
        maps = self.vision(images[box.place])
        return resized(self.classify(Seen(maps, self.decoder(maps))), (box.height, box.width))
