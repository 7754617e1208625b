"""From the encoder's feature maps to the features that are classified: DAFormer's, DeepLab-V2's, a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from examples.common.decoders import block, context, resized

_ATROUS_RATES = (6, 12, 18, 24)  # dilations, in cells of the last map


class PyramidDecoder(nn.Module):
    """Each map to `width` channels, added from coarse to fine, then one 3x3 layer."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.smooth = block(width, width)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps, finest first -> (N, width, h, w) of the finest one's size, not negative."""
        *finer, y = (lateral(x) for lateral, x in zip(self.laterals, maps, strict=True))
        for lateral in reversed(finer):
            y = lateral + resized(y, lateral.shape[-2:])
        return self.smooth(y.contiguous())  # type: ignore[no-any-return]


class ContextDecoder(nn.Module):
    """DAFormer's (Hoyer et al., CVPR 2022): all maps at the finest size, joined, seen at several dilations.

    Each map goes to `width` channels; their concatenation passes a 1x1 layer and three depthwise separable 3x3 layers
    of dilations 6, 12 and 18, which a 3x3 layer fuses.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        joined = width * len(channels)
        self.embed = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.branches, self.fuse = context(joined, width)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps, finest first -> (N, width, h, w) of the finest one's size, not negative."""
        joined = join([layer(x) for layer, x in zip(self.embed, maps, strict=True)])
        return self.fuse(torch.cat([branch(joined) for branch in self.branches], 1))  # type: ignore[no-any-return]


class AtrousDecoder(nn.Module):
    """DeepLab-V2's (Chen et al., 2017): the sum of four dilated 3x3 layers on the last map.

    There the layers give logits; here they give `width` features, on which the classifier follows, after a ReLU.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(channels[-1], width, 3, padding=rate, dilation=rate) for rate in _ATROUS_RATES
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps, finest first -> (N, width, h, w) of the last one's size, not negative."""
        return torch.stack([layer(maps[-1]) for layer in self.layers]).sum(0).relu()


DECODERS = {"context": ContextDecoder, "atrous": AtrousDecoder, "pyramid": PyramidDecoder}


def join(maps: Sequence[Tensor]) -> Tensor:
    """Maps (N, C_i, h_i, w_i) at the size of the first, their channels side by side."""
    return torch.cat([resized(x, maps[0].shape[-2:]) for x in maps], 1)
