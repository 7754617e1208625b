"""BLIP-2 (Li et al., 2023) by transformers, run once over a data set; the captions go to a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from examples.common.clip import MEAN, STD, local
from examples.common.scenes.domain import Domain
from examples.common.training import write_atomically
from examples.common.vision import freeze
from examples.semidavil.model.captions import read_captions


class Blip2:
    """Images -> captions, greedily decoded, without a prompt.

    Args:
        model: transformers' `Blip2ForConditionalGeneration`.
        tokenizer: its tokenizer: `batch_decode(ids, skip_special_tokens=True)`.
        max_new_tokens: length of a caption.
    """

    def __init__(self, model: Any, tokenizer: Any, *, max_new_tokens: int = 30) -> None:
        self.model, self.tokenizer, self.max_new_tokens = freeze(model), tokenizer, max_new_tokens

    @classmethod
    def load(cls, where: str, device: str | torch.device = "cpu") -> Blip2:
        """From a path or a hub name, such as Salesforce/blip2-opt-2.7b; in half precision on a GPU."""
        from transformers import AutoTokenizer, Blip2ForConditionalGeneration  # noqa: PLC0415 (seconds)

        dtype = torch.float16 if torch.device(device).type == "cuda" else torch.float32
        model = Blip2ForConditionalGeneration.from_pretrained(where, dtype=dtype, **local(where))
        return cls(model.to(device), AutoTokenizer.from_pretrained(where, **local(where)))

    @torch.no_grad()
    def __call__(self, images: Sequence[Tensor]) -> list[str]:
        """Images (3, H, W) in [0, 1], of any sizes -> a caption each."""
        side = self.model.config.vision_config.image_size
        resized = [
            F.interpolate(x[None], size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
            for x in images
        ]
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))
        pixels = (torch.cat(resized) - mean) / std
        pixels = pixels.to(self.model.device, self.model.dtype)
        ids = self.model.generate(pixel_values=pixels, max_new_tokens=self.max_new_tokens, do_sample=False)
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def write_captions(
    domains: Sequence[Domain], captioner: Blip2, path: Path, *, batch_size: int = 8
) -> dict[str, str]:
    """Caption every image that the file has no caption of yet; the file grows batch by batch, and a stop loses one.

    Raises:
        ValueError: two domains have images of the same name, or the file is no file of captions.
    """
    names = [name for domain in domains for name in domain.names]
    if len(set(names)) < len(names):
        raise ValueError(
            "two of the data sets have images of the same name: their captions need files of their own"
        )
    captions = read_captions(path) if path.is_file() else {}
    missing = [(d, i) for d in domains for i, name in enumerate(d.names) if name not in captions]
    for batch in tqdm(list(_batches(missing, batch_size)), desc="caption", unit="batch", disable=None):
        texts = captioner([domain.image(i) for domain, i in batch])
        captions |= {domain.names[i]: text for (domain, i), text in zip(batch, texts, strict=True)}
        content = json.dumps(captions, indent=0, sort_keys=True)
        write_atomically(path, lambda partial, content=content: partial.write_text(content))  # type: ignore[misc]
    return captions


def _batches(items: Sequence[tuple[Domain, int]], size: int) -> Iterator[Sequence[tuple[Domain, int]]]:
    return (items[start : start + size] for start in range(0, len(items), size))
