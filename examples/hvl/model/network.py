"""The network: encoder, two kinds of queries, and the mask transformer.

    image ── encoder ──┬── pixel decoder ⇄ refinement ─┬── mask features ──────┐
                       └── own prediction     │        │                       │
    class names, prompts ── text ── queries ──┘ ── aligned ─┬─ transformer ────┴─ masks, classes
    label, or zero-shot ── presence ──┘        object queries ─┘   decoder

The frozen encoders of image and text stand beside it, and belong to no checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from examples.common.text import TextEncoder, build_text
from examples.common.vision import VisionEncoder, build_vision, freeze
from examples.hvl.config import Config
from examples.hvl.model.decoder import LEVELS, ClassHead, EncoderHead, MaskTransformer, pyramid_channels
from examples.hvl.model.prediction import Prediction
from examples.hvl.model.presence import Probe, ZeroShot
from examples.hvl.model.queries import QueryGenerator
from examples.hvl.model.refinement import PixelTextRefinement
from examples.hvl.model.text import ClassText

_MAX_TOKENS = 77  # CLIP's


@dataclass(frozen=True)
class Frozen:
    """The encoders as they were before training: L_mask's reference, and the text's."""

    vision: VisionEncoder
    text: TextEncoder

    def to(self, device: torch.device) -> Frozen:
        """The same on another device."""
        return Frozen(self.vision.to(device), self.text.to(device))


class Network(nn.Module):
    """HVL's network.

    Args:
        config: what is in it.
        vision: the encoder; trained with the rest where the configuration says so.
        text: of the classes.
    """

    def __init__(self, config: Config, vision: VisionEncoder, text: ClassText) -> None:
        super().__init__()
        model, parts = config.model, config.components
        classes, text_width = text.prototypes.shape
        self.vision = vision if model.train_vision else freeze(vision)
        self._frozen, self._joint = not model.train_vision, parts.joint
        self.text = text
        self.filters = parts.text_queries == "hierarchical"
        levels = 0 if parts.text_queries == "none" else LEVELS
        self.generator = (
            QueryGenerator(text_width, model.width, levels, hierarchical=self.filters) if levels else None
        )
        last = vision.channels[-1]
        shared = vision.joint_scale is not None and last == text_width
        self.presence: ZeroShot | Probe = (
            ZeroShot(text.prototypes, model.presence) if shared else Probe(last, classes)
        )
        self.transformer = MaskTransformer(
            pyramid_channels(vision.channels),
            model.width,
            model.heads,
            model.pixel_layers,
            model.decoder_layers,
        )
        self.refinement = _refinements(model.pixel_layers, model.width) if parts.refinement else None
        objects = model.object_queries if parts.object_queries else 0
        self.text_queries = classes * levels
        self.objects = nn.Parameter(torch.randn(objects, model.width))
        self.positions = nn.Parameter(torch.randn(self.text_queries + objects, model.width))
        self.classify = ClassHead(model.width, classes)
        self.own = EncoderHead(vision.channels, classes)
        self.to_text = nn.Identity() if shared else nn.Conv2d(last, text_width, 1)

    def train(self, mode: bool = True) -> Network:
        """Training mode, but for an encoder that is frozen."""
        super().train(mode)
        if self._frozen:
            self.vision.eval()
        return self

    def queries(self, text: Tensor) -> Tensor | None:
        """The text's queries before anything of the image enters them, (K, L, C): what L_div sees."""
        return None if self.generator is None else self.generator(text)

    def own_logits(self, images: Tensor) -> Tensor:
        """The encoder's own prediction alone, (N, K, h, w)."""
        logits: Tensor = self.own(self.vision(images))
        return logits

    def forward(self, images: Tensor, text: Tensor, presence: Tensor) -> Prediction:
        """The predictions of all queries.

        Args:
            images: (N, 3, H, W) in [0, 1].
            text: t, (K, D).
            presence: s, (N, K).
        """
        features = self.vision(images)
        mask_features, scales, aligned = self._pixels(features, text, presence)
        number = self.text_queries
        queries = torch.cat([aligned.flatten(1, 2), self.objects.expand(len(images), -1, -1)], dim=1)
        positions = self.positions.expand(len(images), -1, -1)
        kinds = [slice(None)] if self._joint else [slice(number), slice(number, None)]
        decoded = [
            self.transformer.decode(queries[:, kind], positions[:, kind], mask_features, scales)
            for kind in kinds
            if queries[:, kind].shape[1]
        ]
        states, masks = (
            [torch.cat(parts, dim=1) for parts in zip(*layers, strict=True)]
            for layers in zip(*decoded, strict=True)
        )
        classes = [self.classify(state) for state in states]
        return Prediction(classes, masks, number, self.own(features))

    def _pixels(
        self, features: Sequence[Tensor], text: Tensor, presence: Tensor
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """The pixel decoder's maps, and the aligned queries (N, K, L, C)."""
        made = self.queries(text)
        if made is None:
            made = text.new_zeros(0, LEVELS, self.objects.shape[1])
            presence = presence[:, :0]
        queries = made.expand(len(features[0]), -1, -1, -1)
        if self.filters:
            queries = queries * presence[:, :, None, None]
        return self.transformer.pixels(features, queries, self.refinement)


def build_network(config: Config, classes: Sequence[str]) -> tuple[Network, Frozen]:
    """The network, and the frozen encoders, of which that of images starts where the network's does.

    Random weights of encoders, where a name asks for such, are the same for all seeds; the others are drawn from
    torch's global generator, which the caller seeds.
    """
    model = config.model
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = build_vision(model.vision, model.dense)
        encoder = build_text(model.text, _MAX_TOKENS - model.prompt_tokens, pooled=True)
    freeze(encoder)
    names = [name.replace("_", " ") for name in classes]
    text = ClassText(encoder, names, model.template, model.prompt_tokens)
    reference = deepcopy(vision)
    freeze(reference)
    return Network(config, vision, text), Frozen(reference, encoder)


def _refinements(layers: int, width: int) -> nn.ModuleList:
    """PTRM's modules: one for each layer and map."""
    return nn.ModuleList(
        [nn.ModuleList([PixelTextRefinement(width) for _ in range(LEVELS)]) for _ in range(layers)]
    )
