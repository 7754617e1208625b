"""PTRM: pixels of one resolution and the queries made for it refine each other."""

from __future__ import annotations

from torch import Tensor, nn


class PixelTextRefinement(nn.Module):
    """First the pixels look at the queries, z ← z + softmax(Q_z K_tᵀ) V_t, then the queries at the refined pixels.

    As printed there is one head, no scale in the softmax and no norm; the cluster centres c_t of the text are read as
    its keys K_t. The paper has no equation for the second half: it is read as the first one with the parts exchanged.
    The maps have no bias, so that a query of an absent class, whose relevance is 0, has nothing to say.

    Args:
        width: C, of pixels and queries.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pixel_query, self.text_key, self.text_value = (
            nn.Linear(width, width, bias=False) for _ in range(3)
        )
        self.text_query, self.pixel_key, self.pixel_value = (
            nn.Linear(width, width, bias=False) for _ in range(3)
        )

    def forward(self, pixels: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (N, P, C) and queries (N, K, C) -> the same, refined."""
        named = (self.pixel_query(pixels) @ self.text_key(queries).transpose(1, 2)).softmax(-1)
        pixels = pixels + named @ self.text_value(queries)
        seen = (self.text_query(queries) @ self.pixel_key(pixels).transpose(1, 2)).softmax(-1)
        return pixels, queries + seen @ self.pixel_value(pixels)
