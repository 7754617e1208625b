"""The network: encoder, decoder, classifier, and the projector that the pull loss sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.common.decoders import block, resized
from examples.common.sampling import seed_of
from examples.t2s_da.config import ModelConfig
from examples.t2s_da.decoders import DECODERS, join
from examples.t2s_da.vision import build_vision

_ENCODER, _DECODER, _PROJECTOR = range(3)  # whose initial weights are drawn apart


class Seen(NamedTuple):
    """What a network sees in images: the encoder's `maps`, finest first, and the decoder's `features` (N, D, h, w)."""

    maps: list[Tensor]
    features: Tensor


class Judged(NamedTuple):
    """What a teacher has `seen`, and its `logits` (N, C, h, w)."""

    seen: Seen
    logits: Tensor


class Look(NamedTuple):
    """A pass in training: what is `seen`, its `logits` (N, C, h, w), and HRDA's `detail` logits of a window."""

    seen: Seen
    logits: Tensor
    detail: Tensor | None = None


class Outputs(NamedTuple):
    """Of a step's passes: `logits`, HRDA's `details`, `embeddings` (N, d, h, w), the first one's `coarsest` map."""

    logits: list[Tensor]
    details: list[Tensor]
    embeddings: list[Tensor]
    coarsest: Tensor


class Segmenter(nn.Module):
    """Images (N, 3, H, W) in [0, 1] -> features, logits and embeddings.

    The projector g is two blocks of convolution, batch norm and ReLU on the encoder's features (3x3 is this example's
    choice), None where nothing is pulled. An encoder with several maps gives them at the finest size, side by side, as
    a decoder takes them ("encoder"): of the last one alone ("encoder_last"), at 1/32 of the image, two crops of 512²
    have 512 cells, fewer than the paper draws of them. "decoder" takes what is classified.
    """

    def __init__(self, config: ModelConfig, num_classes: int, seed: int, *, pulls: bool) -> None:
        super().__init__()
        self.projects = config.projector
        draw_weights(seed, _ENCODER)
        self.vision = build_vision(config.vision)
        draw_weights(seed, _DECODER)
        self.decoder = DECODERS[config.decoder](self.vision.channels, config.width)
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = nn.Conv2d(config.width, num_classes, 1)
        self.project: nn.Module | None = None
        if pulls:
            draw_weights(seed, _PROJECTOR)
            channels = {
                "encoder": sum(self.vision.channels),
                "encoder_last": self.vision.channels[-1],
                "decoder": config.width,
            }
            width = config.projection
            self.project = nn.Sequential(block(channels[config.projector], width), block(width, width))

    def context(self, images: Tensor) -> Tensor:
        """The images as the encoder sees them."""
        return images

    def see(self, images: Tensor) -> Seen:
        """The maps and features of images."""
        maps = self.vision(self.context(images))
        return Seen(maps, self.decoder(maps))

    def classify(self, seen: Seen) -> Tensor:
        """Logits (N, C, h, w)."""
        return self.classifier(self.dropout(seen.features))  # type: ignore[no-any-return]

    def look(self, images: Tensor, box: Any = None) -> Look:
        """A pass in training; the box is for networks of two resolutions."""
        seen = self.see(images)
        return Look(seen, self.classify(seen))

    def judge(self, images: Tensor) -> Judged:
        """What a teacher says of images."""
        seen = self.see(images)
        return Judged(seen, self.classify(seen).float())

    def embed(self, images: Tensor) -> Tensor:
        """What is pulled: (N, d, h, w). The decoder works only where its features are asked for."""
        maps = self.vision(self.context(images))
        return self._embed(maps, self.decoder(maps) if self.projects == "decoder" else None)

    def embed_seen(self, seen: Seen) -> Tensor:
        """The same of what was seen already."""
        return self._embed(seen.maps, seen.features)

    def forward(
        self, classified: Sequence[Tensor], embedded: Sequence[Tensor] = (), box: Any = None
    ) -> Outputs:
        """Logits of some batches and embeddings of others, each batch in a pass of its own.

        So batch norm takes each domain by itself, and one call is what DistributedDataParallel sees of a step.
        """
        looks = [self.look(images, box) for images in classified]
        return Outputs(
            [look.logits for look in looks],
            [look.detail for look in looks if look.detail is not None],
            [self.embed(images) for images in embedded],
            looks[0].seen.maps[-1],
        )

    def predict(self, images: Tensor) -> Tensor:
        """Logits (N, C, H, W) at the images' size."""
        return resized(self.judge(images).logits, images.shape[-2:])

    def _embed(self, maps: list[Tensor], features: Tensor | None) -> Tensor:
        if self.project is None:
            raise TypeError("this network has no projector: build it with components.pull = true")
        if features is not None and self.projects == "decoder":
            return self.project(features)  # type: ignore[no-any-return]
        taken = join(maps) if self.projects == "encoder" else maps[-1]
        return self.project(taken)  # type: ignore[no-any-return]


def shrink(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Labels (N, H, W) -> (N, *size) by nearest neighbour, which never mixes two classes."""
    return F.interpolate(labels[:, None].float(), size=tuple(size), mode="nearest")[:, 0].long()


def draw_weights(seed: int, part: int) -> None:
    """Start a part's own draws of initial weights."""
    torch.manual_seed(seed_of(seed, part, 0))
