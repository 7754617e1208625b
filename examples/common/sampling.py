"""Which images a step gets: a function of the seed, the step and the stream alone, so that a resumed run is exact."""

from __future__ import annotations

from typing import Protocol

import torch

_STREAMS = 16  # room for the streams of a training, and for the augmentations of each


def seed_of(seed: int, index: int, stream: int) -> int:
    """Another seed for each (seed, index, stream); the constants only keep them apart."""
    return (seed * 1_000_003 + index) * _STREAMS + stream


def generator(seed: int, index: int, stream: int) -> torch.Generator:
    """An independent generator for each (seed, index, stream)."""
    return torch.Generator().manual_seed(seed_of(seed, index, stream))


class Sampler(Protocol):
    """Position in the stream of images -> index of an image."""

    def __call__(self, position: int) -> int:
        """The image at a position."""


class Shuffled:
    """Every image once an epoch, in another order each epoch."""

    def __init__(self, length: int, seed: int, stream: int) -> None:
        if length < 1:
            raise ValueError("there is no image to sample from")
        self.length, self.seed, self.stream = length, seed, stream
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __call__(self, position: int) -> int:
        """The image at a position; position // length is its epoch."""
        epoch, place = divmod(position, self.length)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = torch.randperm(self.length, generator=generator(self.seed, epoch, self.stream))
        return int(self._order[place])
