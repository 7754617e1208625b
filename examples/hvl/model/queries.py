"""Queries made of text: the class embeddings, the hierarchical generator, and the pixel-text refinement.

Of these parts the paper's purpose and the equations of its losses were at hand, no more. Each docstring says what is
read into them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ClassText(nn.Module):
    """The text embedding of each class: the frozen prototypes, and what training makes of them.

    Reading: learnt prompts are an offset δ to each class's embedding, from 0, behind the frozen text encoder rather
    than in front of it. It is the same for any encoder, and needs no pass through it. Φ of L_anchor is a linear layer,
    from the identity; its output is what pixels are aligned with (L_align), so the anchor ties down something in use.

    Args:
        prototypes: t^C, shape (K, D).
        learn: whether δ is learnt.
    """

    prototypes: Tensor

    def __init__(self, prototypes: Tensor, *, learn: bool) -> None:
        super().__init__()
        self.register_buffer("prototypes", F.normalize(prototypes, dim=1))
        self.offset = nn.Parameter(torch.zeros_like(prototypes), requires_grad=learn)
        self.project = nn.Linear(prototypes.shape[1], prototypes.shape[1])
        nn.init.eye_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return t and Φ(t), both (K, D)."""
        text = self.prototypes + self.offset
        return text, self.project(text)


class QueryGenerator(nn.Module):
    """Class embeddings -> queries at L levels, (K, L, C); L_div keeps the levels apart.

    Reading: each level is a two-layer perceptron of its own on the same embedding. Without the hierarchy it is one
    linear map, L = 1. The embeddings, of length 1, are scaled by √D first: else the layers' biases drown what tells the
    classes apart, and the queries of all classes start out alike.

    Args:
        text_width: D.
        width: C.
        levels: L; 0 for the linear map.
    """

    def __init__(self, text_width: int, width: int, levels: int) -> None:
        super().__init__()
        plain = [nn.Linear(text_width, width)]
        deep = [
            nn.Sequential(nn.Linear(text_width, width), nn.ReLU(), nn.Linear(width, width))
            for _ in range(levels)
        ]
        self.maps = nn.ModuleList(deep or plain)

    @property
    def levels(self) -> int:
        """L."""
        return len(self.maps)

    def forward(self, text: Tensor) -> Tensor:
        """(K, D) -> (K, L, C)."""
        scaled = text * text.shape[1] ** 0.5
        return torch.stack([level(scaled) for level in self.maps], dim=1)


class RelevanceFilter(nn.Module):
    """How likely each class is to be in the image: a factor in (0, 1) on its queries, so that absent ones are damped.

    Reading: a sigmoid of the scaled cosine between the image's mean feature, projected, and the class's text. A factor
    changes no cosine between the queries of a class, so L_div is taken before it.
    """

    def __init__(self, channels: int, text_width: int) -> None:
        super().__init__()
        self.project = nn.Linear(channels, text_width)
        self.scale, self.bias = nn.Parameter(torch.tensor(5.0)), nn.Parameter(torch.tensor(2.0))

    def forward(self, feature: Tensor, text: Tensor) -> Tensor:
        """A map (N, F, h, w) and text (K, D) -> (N, K)."""
        image = F.normalize(self.project(feature.mean((2, 3))), dim=1)
        return torch.sigmoid(self.scale * image @ F.normalize(text, dim=1).T + self.bias)


class PixelTextRefinement(nn.Module):
    """Queries look at the pixels, and pixels at the queries: image-specific queries, features that know the classes.

    Reading: one layer of attention each way, with a residual and a norm; the pixels of all scales share its weights.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.to_queries = nn.MultiheadAttention(width, heads, batch_first=True)
        self.to_pixels = nn.MultiheadAttention(width, heads, batch_first=True)
        self.query_norm, self.pixel_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, queries: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Queries (N, Q, C) and maps (N, C, h_i, w_i) -> the same, refined."""
        tokens = [feature.flatten(2).transpose(1, 2) for feature in features]
        pixels = torch.cat(tokens, dim=1)
        seen, _ = self.to_queries(queries, pixels, pixels, need_weights=False)
        queries = self.query_norm(queries + seen)
        named, _ = self.to_pixels(pixels, queries, queries, need_weights=False)
        pixels = self.pixel_norm(pixels + named)
        parts = pixels.split([part.shape[1] for part in tokens], dim=1)
        maps = [
            part.transpose(1, 2).unflatten(2, feature.shape[2:])
            for part, feature in zip(parts, features, strict=True)
        ]
        return queries, maps
