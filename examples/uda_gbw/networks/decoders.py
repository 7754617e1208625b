"""From the encoder's four feature maps to logits: a feature pyramid, and DAFormer's context-aware fusion."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from examples.common.decoders import block, context, resized
from examples.common.models import PointwiseConv


class PyramidDecoder(nn.Module):
    """Each map to `width` channels, added from coarse to fine, then one 3x3 and one 1x1 layer."""

    def __init__(self, channels: Sequence[int], width: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(PointwiseConv(c, width, bias=True) for c in channels)
        self.smooth = block(width, width)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = PointwiseConv(width, outputs, bias=True)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps, finest first -> (N, outputs, h, w) of the finest one's size."""
        *finer, y = (lateral(x) for lateral, x in zip(self.laterals, features, strict=True))
        for lateral in reversed(finer):
            y = lateral + resized(y, lateral.shape[-2:])
        logits: Tensor = self.classify(self.dropout(self.smooth(y)))
        return logits


class ContextDecoder(nn.Module):
    """DAFormer's decoder (Hoyer et al., CVPR 2022): all maps at the finest size, joined, seen at several dilations.

    Each map goes to `width` channels and is resized; their concatenation passes four parallel layers, a 1x1 one and
    three depthwise separable 3x3 ones of dilations 6, 12 and 18; a 3x3 layer fuses these.
    """

    def __init__(self, channels: Sequence[int], width: int, outputs: int, dropout: float) -> None:
        super().__init__()
        joined = width * len(channels)
        self.embed = nn.ModuleList(PointwiseConv(c, width, bias=True) for c in channels)
        self.branches, self.fuse = context(joined, width)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = PointwiseConv(width, outputs, bias=True)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Feature maps, finest first -> (N, outputs, h, w) of the finest one's size."""
        size = features[0].shape[-2:]
        x = torch.cat([resized(f(x), size) for f, x in zip(self.embed, features, strict=True)], 1)
        y = self.fuse(torch.cat([branch(x) for branch in self.branches], 1))
        logits: Tensor = self.classify(self.dropout(y))
        return logits
