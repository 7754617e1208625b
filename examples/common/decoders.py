"""Layers of the decoders of adaptation: DAFormer's context (Hoyer et al., CVPR 2022), blocks, maps of other sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

_RATES = (1, 6, 12, 18)  # dilations, in cells of the finest map


def context(joined: int, width: int) -> tuple[nn.ModuleList, nn.Sequential]:
    """Parallel layers, one 1x1 and three depthwise separable 3x3 ones of dilations 6, 12 and 18; what fuses them."""
    branches = nn.ModuleList(_branch(joined, width, rate) for rate in _RATES)
    return branches, block(width * len(_RATES), width)


def block(in_channels: int, out_channels: int) -> nn.Sequential:
    """A 3x3 convolution, batch norm, ReLU."""
    return _normalised(nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False))


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (N, C, h, w) -> (N, C, *size), bilinearly."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def _branch(joined: int, width: int, rate: int) -> nn.Sequential:
    if rate == 1:
        return _normalised(nn.Conv2d(joined, width, 1, bias=False))
    depthwise = nn.Conv2d(joined, joined, 3, padding=rate, dilation=rate, groups=joined, bias=False)
    return nn.Sequential(*_normalised(depthwise), *_normalised(nn.Conv2d(joined, width, 1, bias=False)))


def _normalised(layer: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU(inplace=True))
