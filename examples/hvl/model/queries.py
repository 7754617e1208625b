"""HTQG's heads: queries made of the text of the classes, one for each class and resolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class QueryGenerator(nn.Module):
    """q_k^(l) = MLP_l(t_k): class embeddings -> queries (K, L, C), head l for the l-th map of the pixel decoder.

    The embeddings, of length 1, are scaled by √D first: else the layers' biases drown what tells the classes apart,
    and the queries of all classes start out alike.

    Args:
        text_width: D.
        width: C.
        levels: L.
        hierarchical: perceptrons of two layers, one a level; otherwise one linear map for all levels, which is what is
            left of the text where the generator is taken out (Table 2, "without HTQG"; our reading).
    """

    def __init__(self, text_width: int, width: int, levels: int, *, hierarchical: bool) -> None:
        super().__init__()
        self.levels = levels
        self.heads = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(text_width, width), nn.ReLU(), nn.Linear(width, width))
                for _ in range(levels)
            ]
            if hierarchical
            else [nn.Linear(text_width, width)]
        )

    def forward(self, text: Tensor) -> Tensor:
        """(K, D) -> (K, L, C)."""
        scaled = text * text.shape[1] ** 0.5
        made = torch.stack([head(scaled) for head in self.heads], dim=1)
        return made.expand(-1, self.levels, -1)
