"""Vision encoders: images in [0, 1] -> feature maps, the finest first."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.common.models import EfficientNetLiteEncoder

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class VisionEncoder(nn.Module):
    """(N, 3, H, W) in [0, 1] -> feature maps (N, channels[i], h_i, w_i)."""

    channels: tuple[int, ...]
    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def normalized(self, image: Tensor) -> Tensor:
        """The image as the pretrained weights expect it."""
        return (image - self.mean) / self.std


class EfficientNetVision(VisionEncoder):
    """EfficientNet-Lite0: maps at 1/4, 1/8, 1/16 and 1/32 of the image's size."""

    channels = EfficientNetLiteEncoder.channels

    def __init__(self, *, pretrained: bool = True) -> None:
        super().__init__(IMAGENET_MEAN, IMAGENET_STD)
        self.encoder = EfficientNetLiteEncoder()
        if not pretrained:
            self.apply(_reset)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(N, 3, H, W) in [0, 1] -> four maps."""
        image = self.normalized(image).contiguous(memory_format=torch.channels_last)
        features: list[Tensor] = self.encoder(image)
        return features


def _reset(module: nn.Module) -> None:
    if isinstance(module, nn.BatchNorm2d):
        module.reset_parameters()
    elif isinstance(weight := getattr(module, "weight", None), nn.Parameter):
        nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
