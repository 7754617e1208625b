"""Rare-class sampling, and the pixels of each class in each image that it draws by."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from examples.common.sampling import generator
from examples.common.scenes.domain import Domain
from examples.common.training import write_atomically

SOURCE, LABELLED, UNLABELLED = range(3)  # the streams


class RareClassSampler:
    """Rare-class sampling (Hoyer et al., DAFormer, 2022): draw a class, the rare ones more often, then an image of it.

        P(c) ∝ exp((1 − f_c) / T),    f_c: the share of class c among all labelled pixels

    Args:
        counts: pixels of each class in each image, (images, C); see `class_counts`.
        seed: of the draws.
        stream: keeps the streams apart.
        temperature: T; the smaller, the rarer the classes that are drawn.
        min_pixels: an image counts as one of a class from this number of its pixels on.

    Raises:
        ValueError: no image has a labelled pixel, or the temperature is not positive.
    """

    def __init__(
        self, counts: Tensor, seed: int, stream: int, *, temperature: float = 0.01, min_pixels: int = 1
    ) -> None:
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.seed, self.stream = seed, stream
        self.images = [torch.nonzero(column >= max(min_pixels, 1)).flatten() for column in counts.T]
        present = torch.tensor([len(images) > 0 for images in self.images])
        if not present.any():
            raise ValueError(f"no image has {min_pixels} pixels of a class: is this data labelled?")
        share = counts.double().sum(0) / counts.sum()
        self.probability = ((1 - share) / temperature).masked_fill(~present, -torch.inf).softmax(0)

    def __call__(self, position: int) -> int:
        """The image at a position."""
        draw = generator(self.seed, position, self.stream)
        images = self.images[int(torch.multinomial(self.probability, 1, generator=draw))]
        return int(images[torch.randint(len(images), (1,), generator=draw)])


def class_counts(domain: Domain, num_classes: int, cache: Path | None = None) -> Tensor:
    """Pixels of each class in each image, (images, C) int64; read from `cache` where that has the same images."""
    if cache is not None and cache.is_file():
        kept = torch.load(cache, weights_only=True)
        if kept["names"] == list(domain.names) and kept["counts"].shape[1] == num_classes:
            counts: Tensor = kept["counts"]
            return counts
    rows = [_count(domain.label(i), num_classes) for i in range(len(domain.names))]
    counts = torch.stack(rows)
    if cache is not None:
        content = {"names": list(domain.names), "counts": counts}
        write_atomically(cache, lambda partial: torch.save(content, partial))
    return counts


def _count(label: Tensor, num_classes: int) -> Tensor:
    return torch.bincount(label[label < num_classes], minlength=num_classes)
