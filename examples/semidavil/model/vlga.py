"""Vision-language guided attention, SemiVL's decoder (Hoyer et al., 2024), as the guidance that Figure 5 compares.

One map for each class of where the image is like the class's name, refined in the image and among the classes:

    cosine of each position's feature with each class's text   (K, h, w)
    7x7 convolution and an ASPP on each class's map            (K, c, h, w)
    at each position a transformer layer over the K classes, which gets the classes' text beside their maps
    1x1 convolution                                            (K, h, w)

SemiVL enlarges these maps with the encoder's finer ones beside; here the decoder does, as for every other guidance.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.common.text import Text

_RATES = (6, 12, 18)  # dilations of the ASPP


class VisionLanguageGuidedAttention(nn.Module):
    """Feature map and class texts -> a map for each class.

    Args:
        vision_channels: of the feature map.
        text_channels: of a class's text; where it differs, both are projected before they are compared.
        channels: of that projection; each map has a quarter of them (SemiVL: 128).
        num_classes: K.
    """

    def __init__(self, vision_channels: int, text_channels: int, channels: int, num_classes: int) -> None:
        super().__init__()
        aligned, width = vision_channels == text_channels, max(channels // 4, 1)
        self.vision = nn.Identity() if aligned else nn.Conv2d(vision_channels, channels, 1)
        self.text = nn.Identity() if aligned else nn.Linear(text_channels, channels)
        self.enter = nn.Sequential(nn.Conv2d(1, width, 7, padding=3), nn.ReLU(inplace=True))
        self.pyramid = nn.ModuleList(
            [nn.Conv2d(width, width, 1), *(nn.Conv2d(width, width, 3, padding=r, dilation=r) for r in _RATES)]
        )
        self.join = nn.Sequential(nn.Conv2d(len(self.pyramid) * width, width, 1), nn.ReLU(inplace=True))
        self.beside = nn.Linear(width + text_channels, width)
        self.among = nn.TransformerEncoderLayer(
            width, math.gcd(4, width), 2 * width, dropout=0.0, batch_first=True
        )
        self.leave = nn.Linear(width, 1)
        self.out_channels = num_classes

    def forward(self, feature: Tensor, text: Text) -> Tensor:
        """Features (N, C, h, w) and K class texts of N images -> (N, K, h, w)."""
        number, size = len(feature), feature.shape[-2:]
        unit_text = F.normalize(self.text(text.tokens), dim=2)
        cosine = torch.einsum("nchw,nkc->nkhw", F.normalize(self.vision(feature), dim=1), unit_text)
        x = self.enter(cosine.flatten(0, 1)[:, None])  # (N K, c, h, w)
        x = self.join(torch.cat([layer(x) for layer in self.pyramid], 1))
        x = x.unflatten(0, (number, -1)).flatten(3).permute(0, 3, 1, 2)  # (N, hw, K, c)
        names = text.tokens[:, None].expand(-1, x.shape[1], -1, -1)
        x = self.among(self.beside(torch.cat([x, names], 3)).flatten(0, 1))  # (N hw, K, c)
        maps: Tensor = self.leave(x).squeeze(2)
        return maps.unflatten(0, (number, -1)).transpose(1, 2).unflatten(2, size).contiguous()
