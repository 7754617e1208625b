r"""Dense language guidance, equations 2 and 3 of SemiDAViL: where in the image is what the caption speaks of?

Two linear layers each make keys and values of the image's features and of the caption's tokens. For one image, with
hw positions, n_L tokens and c channels:

    F_V^K, F_V^V   (hw, c)      from the vision encoder's last map
    F_L^K, F_L^V   (n_L, c)     from the text encoder's tokens

    A     = F_V^K (F_L^K)ᵀ / √c                                            (hw, n_L)        equation 2
    F_V^A = softmax(A) F_V^V,   F_L^A = softmax(A) F_L^V,   F_M = F_V^A (F_L^A)ᵀ             equation 3

As printed equation 3 does not type-check: softmax(A) is (hw, n_L), and F_V^V has hw rows. One reading makes all of it
fit, with F_M of the printed shape n_L × h × w, and is the default here, `"paper"`:

    F_L^A = softmax over tokens    (A)  F_L^V      (hw, c)     each position described by the caption
    F_V^A = softmax over positions (Aᵀ) F_V^V      (n_L, c)    each token described by the image
    F_M   = F_V^A (F_L^A)ᵀ                         (n_L, hw) → n_L maps, one a token

The released code takes another way, `"code"`: with S = softmax over tokens (A), it returns S F_L^V + S (Sᵀ F_V^V),
(hw, c). It also pools a caption to one vector, n_L = 1, where S is 1 everywhere and the map no longer depends on the
position; the text encoder does that (`pooled`).

Figure 5 compares three others. `"correlation"` is LSeg's word-pixel correlation, A itself. `"cross_attention"` is what
§3.2 calls conventional: language decides how vision features are added up, and is no part of what is added up. With
the weights of equation 3 that is S (softmax over positions (Aᵀ) F_V^V), (hw, c), each position a mean of what its words
see. `"vlga"`, SemiVL's, is in `vlga.py`: it takes class names in place of captions.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from examples.common.text import Text

READINGS = ("paper", "code", "cross_attention", "correlation")  # and "vlga", a module of its own


class DenseLanguageGuidance(nn.Module):
    """Feature map and caption -> a map that tells the decoder where the caption's words are.

    Args:
        vision_channels: of the feature map.
        text_channels: of a token.
        channels: c, of keys and values.
        max_tokens: n_L; shorter captions fill up with zero maps.
        reading: `"paper"`, `"code"`, `"cross_attention"` or `"correlation"`, see above.

    Raises:
        ValueError: an unknown reading.
    """

    def __init__(
        self, vision_channels: int, text_channels: int, channels: int, max_tokens: int, reading: str = "paper"
    ) -> None:
        super().__init__()
        if reading not in READINGS:
            raise ValueError(f"guidance must be one of {', '.join(READINGS)}, got {reading!r}")
        self.reading, self.max_tokens = reading, max_tokens
        self.vision_key, self.vision_value = (nn.Linear(vision_channels, channels) for _ in range(2))
        self.text_key, self.text_value = (nn.Linear(text_channels, channels) for _ in range(2))
        # DistributedDataParallel waits for the gradient of every layer that is trained.
        self.vision_value.requires_grad_(reading != "correlation")
        self.text_value.requires_grad_(reading in ("paper", "code"))
        self.out_channels = max_tokens if reading in ("paper", "correlation") else channels

    def forward(self, feature: Tensor, text: Text) -> Tensor:
        """Features (N, C, h, w) and captions of N images -> (N, out_channels, h, w).

        Raises:
            ValueError: a caption has more than `max_tokens` tokens.
        """
        if text.tokens.shape[1] > self.max_tokens:
            raise ValueError(
                f"expected at most {self.max_tokens} tokens a caption, got {text.tokens.shape[1]}"
            )
        pixels = feature.flatten(2).transpose(1, 2)  # (N, hw, C)
        padding = ~text.mask[:, None]  # (N, 1, n_L)
        keys = self.vision_key(pixels) @ self.text_key(text.tokens).transpose(1, 2)
        score = keys / math.sqrt(self.vision_key.out_features)  # A, (N, hw, n_L)
        guided = self._attend(score, padding, pixels, text)  # (N, hw, out_channels)
        return guided.transpose(1, 2).unflatten(2, feature.shape[-2:])

    def _attend(self, score: Tensor, padding: Tensor, pixels: Tensor, text: Text) -> Tensor:
        if self.reading == "correlation":
            return self._all_tokens(score.masked_fill(padding, 0))
        by_token = score.masked_fill(padding, float("-inf")).softmax(2)
        values = self.vision_value(pixels)
        seen = score.softmax(1).transpose(1, 2) @ values  # F_V^A, (N, n_L, c)
        if self.reading == "cross_attention":
            return by_token @ seen
        described = by_token @ self.text_value(text.tokens)  # F_L^A, (N, hw, c)
        if self.reading == "code":
            return described + by_token @ (by_token.transpose(1, 2) @ values)
        return self._all_tokens((described @ seen.transpose(1, 2)).masked_fill(padding, 0))  # F_M

    def _all_tokens(self, maps: Tensor) -> Tensor:
        """(N, hw, tokens of the batch) -> (N, hw, max_tokens)."""
        return F.pad(maps, (0, self.max_tokens - maps.shape[2]))
