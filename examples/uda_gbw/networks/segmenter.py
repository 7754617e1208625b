"""The network: an encoder and a decoder, and what a training step needs to see of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from examples.common.decoders import resized
from examples.common.windows import Box

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


class Seen(NamedTuple):
    """What a pass in training gives: `logits` (N, C, H, W), the encoder's `features`, finest first.

    With two resolutions also the `detail` logits (N, C, h, w) of the window `box`; the features are the context's.
    """

    logits: Tensor
    features: Sequence[Tensor]
    detail: Tensor | None = None
    box: Box | None = None


class Segmenter(nn.Module):
    """Images (N, 3, H, W) in [0, 1] -> logits (N, C, H, W)."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)

    def features(self, images: Tensor) -> Sequence[Tensor]:
        """The encoder's feature maps, finest first."""
        x = (images - self.mean) / self.std
        maps: Sequence[Tensor] = self.encoder(x.contiguous(memory_format=torch.channels_last))
        return maps

    def decode(self, features: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Logits (N, C, *size) of feature maps."""
        return resized(self.decoder(features), size).contiguous()

    def see(self, images: Tensor, box: Box | None = None) -> Seen:
        """A pass in training; the box is for networks with two resolutions."""
        features = self.features(images)
        return Seen(self.decode(features, images.shape[-2:]), features)

    def forward(self, images: Tensor) -> Tensor:
        """A pass in evaluation."""
        return self.see(images).logits
