"""Encoders by name: EfficientNet-Lite0 with ImageNet weights, and MiT, SegFormer's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import SegformerConfig, SegformerModel

from examples.common.models import EfficientNetLiteEncoder

# Widths and depths of the four stages (Xie et al., SegFormer, NeurIPS 2021, table 6).
_WIDE = (64, 128, 320, 512)
_SIZES: Mapping[str, dict[str, Any]] = {
    "mit-tiny": {
        "hidden_sizes": (8, 16, 24, 32),
        "depths": (1, 1, 1, 1),
        "num_attention_heads": (1, 1, 2, 2),
        "sr_ratios": (4, 2, 1, 1),
        "drop_path_rate": 0.0,
    },  # for tests
    "mit-b0": {"hidden_sizes": (32, 64, 160, 256), "depths": (2, 2, 2, 2)},
    "mit-b1": {"hidden_sizes": _WIDE, "depths": (2, 2, 2, 2)},
    "mit-b2": {"hidden_sizes": _WIDE, "depths": (3, 4, 6, 3)},
    "mit-b3": {"hidden_sizes": _WIDE, "depths": (3, 4, 18, 3)},
    "mit-b4": {"hidden_sizes": _WIDE, "depths": (3, 8, 27, 3)},
    "mit-b5": {"hidden_sizes": _WIDE, "depths": (3, 6, 40, 3)},
}
ENCODERS = ("efficientnet-lite0", *_SIZES, "mit:PATH-OR-HUB-NAME")


class MixTransformer(nn.Module):
    """SegFormer's encoder: features at 1/4, 1/8, 1/16 and 1/32 of the image's size."""

    def __init__(self, model: SegformerModel) -> None:
        super().__init__()
        self.model = model
        self.channels: tuple[int, ...] = tuple(model.config.hidden_sizes)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W), normalised -> four feature maps, finest first."""
        return list(self.model(x, output_hidden_states=True).hidden_states)


def build_encoder(name: str) -> EfficientNetLiteEncoder | MixTransformer:
    """An encoder with `channels` and four feature maps.

    Args:
        name: one of `ENCODERS`. "mit:" and a folder, or a name of the model hub such as `nvidia/mit-b5`, reads
            pretrained weights; "mit-b5" without them is drawn from torch's random numbers.

    Raises:
        ValueError: an unknown name.
        OSError: no weights under that path or hub name.
    """
    if name == "efficientnet-lite0":
        return EfficientNetLiteEncoder()
    if name.startswith("mit:"):
        return MixTransformer(SegformerModel.from_pretrained(name.removeprefix("mit:")))
    if name not in _SIZES:
        raise ValueError(f"model.encoder must be one of {', '.join(ENCODERS)}, got {name!r}")
    return MixTransformer(SegformerModel(SegformerConfig(**_SIZES[name])))
