"""The network: frozen encoders, and what is trained on them, once as the student and once as its teacher.

    image ── vision encoder ──┬───────────────── decoder ── logits
    caption ── text encoder ──┴─ DLG ───────────────┘

Encoders that are frozen belong to nobody: student and teacher share them, and no checkpoint holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from examples.common.ema import ema_teacher
from examples.common.scenes.domain import Size
from examples.common.text import Text, TextEncoder, build_text
from examples.common.vision import VisionEncoder, build_vision, freeze
from examples.semidavil.config import Config
from examples.semidavil.model.cache import FeatureCache
from examples.semidavil.model.guidance import DenseLanguageGuidance
from examples.semidavil.model.vlga import VisionLanguageGuidedAttention

Guidance = DenseLanguageGuidance | VisionLanguageGuidedAttention


class Decoder(nn.Module):
    """A feature pyramid: each map to `width` channels, added from coarse to fine, then one 3x3 and one 1x1 layer.

    The guidance joins the coarsest map by concatenation and a 3x3 layer. Neither paper nor code says how F_M enters the
    decoder: this is the plainest way.
    """

    def __init__(
        self,
        channels: Sequence[int],
        guided_channels: int,
        width: int,
        num_classes: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.fuse = _conv(width + guided_channels, width) if guided_channels else nn.Identity()
        self.smooth = _conv(width, width)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(width, num_classes, 1)

    def forward(self, features: Sequence[Tensor], guided: Tensor | None, size: Size) -> Tensor:
        """Feature maps, finest first, and guidance (N, G, h, w) of the last one's size -> logits (N, C, *size)."""
        *finer, y = (lateral(x) for lateral, x in zip(self.laterals, features, strict=True))
        y = self.fuse(y if guided is None else torch.cat([y, guided], 1))
        for lateral in reversed(finer):
            y = lateral + _resize(y, lateral.shape[-2:])
        return _resize(self.classify(self.dropout(self.smooth(y))), size).contiguous()


class Segmenter(nn.Module):
    """What is trained: guidance and decoder, and the vision encoder where that is trained too."""

    def __init__(self, vision: nn.Module | None, guidance: Guidance | None, decoder: Decoder) -> None:
        super().__init__()
        self.vision, self.guidance, self.decoder = vision, guidance, decoder

    def forward(self, inputs: list[Tensor], text: Text | None, size: Size) -> Tensor:
        """Images, or features where the encoder is frozen, and captions -> logits (N, C, *size)."""
        features = inputs if self.vision is None else self.vision(inputs[0])
        guided = None if self.guidance is None or text is None else self.guidance(features[-1], text)
        logits: Tensor = self.decoder(features, guided, size)
        return logits


@dataclass
class Networks:
    """Student, teacher and the frozen encoders (None: trained with the student, or not used)."""

    student: Segmenter
    teacher: AveragedModel
    vision: VisionEncoder | None
    text: TextEncoder | None
    cache: FeatureCache | None = None  # of the frozen encoder

    def inputs(self, images: Tensor) -> list[Tensor]:
        """What student and teacher take: features of a frozen encoder, or the images themselves."""
        if self.vision is None:
            return [images]
        with torch.no_grad():
            features: list[Tensor] = self.vision(images) if self.cache is None else self.cache(images)
            return features

    def to(self, device: torch.device) -> Networks:
        """Move all networks."""
        for network in (self.student, self.teacher, self.vision, self.text):
            if network is not None:
                network.to(device)
        return self


def build_networks(config: Config, num_classes: int) -> Networks:
    """Student and teacher with decoders of different initialisation, and their encoders.

    The student's weights are drawn from `training.seed`, the teacher's from another seed. The encoders' random weights,
    where a name asks for such, are the same for all seeds.
    """
    model, parts, seed = config.model, config.components, config.training.seed
    train_vision = config.trains_vision
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = build_vision(model.vision if parts.pretraining else model.vision_without_vlp, model.dense)
        text = None
        if parts.guidance:
            text = build_text(model.text, model.max_tokens, pooled=model.guidance in ("code", "vlga"))
            freeze(text)

    def head() -> Segmenter:
        guidance: Guidance | None = None
        if text is not None:
            widths = (vision.channels[-1], text.channels, model.guidance_channels)
            if model.guidance == "vlga":
                guidance = VisionLanguageGuidedAttention(*widths, num_classes)
            else:
                guidance = DenseLanguageGuidance(*widths, model.max_tokens, model.guidance)
        guided_channels = guidance.out_channels if guidance else 0
        decoder = Decoder(
            vision.channels, guided_channels, model.decoder_channels, num_classes, model.dropout
        )
        return Segmenter(vision if train_vision else None, guidance, decoder)

    student, other = (_seeded(head, 2 * seed + offset) for offset in range(2))
    teacher = ema_teacher(student, other, config.consistency.ema_decay, warmup=config.consistency.ema_warmup)
    return Networks(student, teacher, None if train_vision else freeze(vision), text)


def _seeded(build: Callable[[], Segmenter], seed: int) -> Segmenter:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def _conv(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
