"""The instance branch: a decoder of its own on the semantic network's encoder, with a centre and an offset head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from examples.common.decoders import resized
from examples.common.models import PointwiseConv
from examples.uda_gbw.config import ModelConfig
from examples.uda_gbw.networks.decoders import ContextDecoder, PyramidDecoder
from examples.uda_gbw.networks.segmenter import Segmenter


class Outputs(NamedTuple):
    """`logits` (N, C, H, W), `heat` (N, H, W), and `offset` (N, 2, H, W): rows and columns to the centre, in pixels."""

    logits: Tensor
    heat: Tensor
    offset: Tensor

    def enlarged(self, size: Sequence[int]) -> Outputs:
        """The same for images of another size; offsets grow with it."""
        growth = [now / before for now, before in zip(size, self.heat.shape[-2:], strict=True)]
        offset = resized(self.offset, size) * self.offset.new_tensor(growth).view(2, 1, 1)
        return Outputs(resized(self.logits, size), resized(self.heat[:, None], size)[:, 0], offset)


class InstanceDecoder(nn.Module):
    """Features of the encoder, finest first -> heat (N, H, W) and offsets (N, 2, H, W).

    The shape of Panoptic-DeepLab (Cheng et al., CVPR 2020), which EDAPS' variant with a bottom-up instance branch
    takes: a decoder of the semantic one's kind, then two heads of a 3x3 and a 1x1 layer. Offsets are learnt in cells of
    the finest features.
    """

    def __init__(self, config: ModelConfig, channels: Sequence[int]) -> None:
        super().__init__()
        width = config.channels
        kind = ContextDecoder if config.decoder == "context" else PyramidDecoder
        self.trunk = kind(channels, width, width, 0.0)
        self.centre, self.offset = _head(width, 1), _head(width, 2)

    def forward(self, features: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See above; `size` is the images' (H, W)."""
        x = self.trunk(features)
        heat, offset = (resized(head(x), size) for head in (self.centre, self.offset))
        return heat[:, 0], offset * (size[0] / features[0].shape[-2])


def outputs_of(segmenter: Segmenter, decoder: InstanceDecoder, images: Tensor) -> Outputs:
    """A pass of both halves in evaluation: images (N, 3, H, W) in [0, 1]."""
    size = images.shape[-2:]
    features = segmenter.features(images)
    return Outputs(segmenter.decode(features, size), *decoder(features, size))


def _head(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        PointwiseConv(width, outputs, bias=True),
    )
