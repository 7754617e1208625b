"""The network: encoder, text, two kinds of queries, and the mask transformer.

    image ── encoder ── pixel decoder ──┬────────────── mask features ─────────┐
    class names ── text ── generator ───┴─ refinement ─┬─ transformer decoder ─┴─ masks, classes
                                     object queries ───┘

The frozen encoder of L_mask stands beside it, and belongs to no checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.common.text import build_text
from examples.common.vision import VisionEncoder, build_vision, freeze
from examples.hvl.config import Config
from examples.hvl.model.decoder import ClassHead, MaskTransformer, class_scores, pyramid_channels
from examples.hvl.model.queries import ClassText, PixelTextRefinement, QueryGenerator, RelevanceFilter

_LEAST = 1e-6  # below it a score of a class is none
_MAX_TOKENS = 77


@dataclass(frozen=True)
class Prediction:
    """What the decoder says of each query, once before its first layer and once after each.

    `classes` (N, Q, K + 1), the last one "no object"; `masks` (N, Q, h, w); both logits. The first `text_queries` of
    the Q queries are the text's: L of class 0, L of class 1, and so on.
    """

    classes: Sequence[Tensor]
    masks: Sequence[Tensor]
    text_queries: int

    def __getitem__(self, part: slice) -> Prediction:
        return Prediction([x[part] for x in self.classes], [x[part] for x in self.masks], self.text_queries)

    def logits(self, size: tuple[int, int]) -> Tensor:
        """Logits (N, K, *size): the logarithm of the classes' scores, so that their softmax is the scores' shares."""
        scores = class_scores(self.classes[-1], self.masks[-1])
        scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
        return scores.clamp(min=_LEAST).log()


class Network(nn.Module):
    """HVL's network.

    Args:
        config: what is in it.
        vision: the encoder; trained with the rest where the configuration says so.
        prototypes: the frozen text embedding of each class, (K, D).
    """

    def __init__(self, config: Config, vision: VisionEncoder, prototypes: Tensor) -> None:
        super().__init__()
        model, parts = config.model, config.components
        classes, text_width = prototypes.shape
        self.vision = vision if model.train_vision else freeze(vision)
        self._frozen = not model.train_vision
        self.text = ClassText(prototypes, learn=model.learn_text)
        self.generator = QueryGenerator(text_width, model.width, model.levels if parts.generator else 0)
        last = vision.channels[-1]
        filters = parts.generator and parts.relevance
        self.relevance = RelevanceFilter(last, text_width) if filters else None
        self.refinement = PixelTextRefinement(model.width, model.heads) if parts.refinement else None
        objects = model.object_queries if parts.object_queries else 0
        self.objects = nn.Parameter(torch.randn(objects, model.width))
        number = classes * self.generator.levels + objects
        self.positions = nn.Parameter(torch.randn(number, model.width))
        self.transformer = MaskTransformer(
            pyramid_channels(vision.channels),
            model.width,
            model.heads,
            model.pixel_layers,
            model.decoder_layers,
        )
        self.classify = ClassHead(model.width, classes)
        # CLIP's last map lives in the space of its text; any other one is projected into it.
        aligned = last == text_width and model.vision.startswith("clip")
        self.to_text = nn.Identity() if aligned else nn.Conv2d(last, text_width, 1)

    def train(self, mode: bool = True) -> Network:
        """Training mode, but for an encoder that is frozen."""
        super().train(mode)
        if self._frozen:
            self.vision.eval()
        return self

    def queries(self) -> Tensor:
        """The text's queries before anything of the image enters them, (K, L, C): what L_div sees."""
        text, _ = self.text()
        made: Tensor = self.generator(text)
        return made

    def forward(self, images: Tensor) -> Prediction:
        """(N, 3, H, W) in [0, 1] -> the predictions of all queries."""
        features = self.vision(images)
        text, _ = self.text()
        queries = self.generator(text).expand(len(images), -1, -1, -1)
        if self.relevance is not None:
            queries = queries * self.relevance(features[-1], text)[:, :, None, None]
        queries = queries.flatten(1, 2)
        mask_features, scales = self.transformer.pixels(features)
        if self.refinement is not None:
            queries, scales = self.refinement(queries, scales)
        number = queries.shape[1]
        queries = torch.cat([queries, self.objects.expand(len(images), -1, -1)], dim=1)
        positions = self.positions.expand(len(images), -1, -1)
        states, masks = self.transformer.decode(queries, positions, mask_features, scales)
        return Prediction([self.classify(state) for state in states], masks, number)


def build_network(config: Config, classes: Sequence[str]) -> tuple[Network, VisionEncoder]:
    """The network, and the frozen reference encoder of L_mask, which starts where the network's encoder does.

    Random weights of encoders, where a name asks for such, are the same for all seeds; the others are drawn from
    torch's global generator, which the caller seeds.
    """
    model = config.model
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = build_vision(model.vision)
        encoder = freeze(build_text(model.text, _MAX_TOKENS, pooled=True))
    names = [model.template.format(name.replace("_", " ")) for name in classes]
    prototypes: Tensor = encoder(names).tokens[:, 0]
    reference = deepcopy(vision)
    freeze(reference)
    return Network(config, vision, prototypes), reference
