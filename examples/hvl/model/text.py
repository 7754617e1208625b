"""The text of the classes: the fixed embeddings, and those that learnt prompts make of the same encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.common.text import TextEncoder

_SPREAD = 0.02  # standard deviation of prompts at the start: that of CLIP's token embeddings


class ClassText(nn.Module):
    """t_k = E_T([p, class_k]), its fixed counterpart, and Φ (section 3, HTQG and query regularisation).

    One learnt prompt p of some tokens serves all classes; it is read by the frozen encoder as if it were words. The
    fixed embedding t^CLIP of a class is that of its name in a template. Φ, a perceptron of two layers, stands in
    L_anchor alone. The encoder is no part of this module: it is handed in, and so belongs to no checkpoint.

    Args:
        encoder: frozen and pooled.
        names: of the classes, as words.
        template: of the fixed text, with a place {} for the name.
        tokens: of the prompt.
    """

    prototypes: Tensor

    def __init__(self, encoder: TextEncoder, names: Sequence[str], template: str, tokens: int) -> None:
        super().__init__()
        self.names = tuple(names)
        fixed = encoder([template.format(name) for name in self.names]).tokens[:, 0]
        self.register_buffer("prototypes", F.normalize(fixed, dim=1))
        self.prompt = nn.Parameter(_SPREAD * torch.randn(tokens, encoder.token_width))
        width = fixed.shape[1]
        self.phi = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, encoder: TextEncoder) -> Tensor:
        """t, at length 1, (K, D)."""
        return F.normalize(encoder.prompted(self.names, self.prompt), dim=1)
