"""The network: one encoder, a semantic decoder, and an instance decoder with a centre and an offset head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from examples.common.models import PointwiseConv
from examples.uda_gbw.networks.decoders import PyramidDecoder, resized
from examples.uda_gbw.networks.encoders import build_encoder
from examples.uda_gbw.networks.segmenter import Segmenter
from examples.uda_gbw.panoptic.config import ModelConfig


class Outputs(NamedTuple):
    """`logits` (N, C, H, W), `heat` (N, H, W), and `offset` (N, 2, H, W): rows and columns to the centre, in pixels."""

    logits: Tensor
    heat: Tensor
    offset: Tensor


class PanopticNetwork(nn.Module):
    """Images (N, 3, H, W) in [0, 1] -> `Outputs`.

    The shape of Panoptic-DeepLab (Cheng et al., CVPR 2020): both decoders read the features of a shared encoder, and
    the semantic one is that of the semantic networks of examples/uda_gbw. Offsets are learnt in cells of the finest
    features.
    """

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        encoder = build_encoder(config.encoder)
        width = config.channels
        self.segmenter = Segmenter(
            encoder, PyramidDecoder(encoder.channels, width, num_classes, config.dropout)
        )
        self.instances = InstanceDecoder(encoder.channels, width)

    def forward(self, images: Tensor) -> Outputs:
        """A pass, in training and in evaluation."""
        size = images.shape[-2:]
        features = self.segmenter.features(images)
        heat, offset = self.instances(features)
        heat, offset = resized(heat, size), resized(offset, size)
        cell = size[0] / features[0].shape[-2]
        return Outputs(self.segmenter.decode(features, size), heat[:, 0], offset * cell)


class InstanceDecoder(nn.Module):
    """A feature pyramid of its own, then two heads of a 3x3 and a 1x1 layer."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.trunk = PyramidDecoder(channels, width, width, 0.0)
        self.centre, self.offset = _head(width, 1), _head(width, 2)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Feature maps, finest first -> heat (N, 1, h, w) and offsets (N, 2, h, w) of the finest one's size."""
        x = self.trunk(features)
        return self.centre(x), self.offset(x)


def _head(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        PointwiseConv(width, outputs, bias=True),
    )
