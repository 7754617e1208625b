"""The batches of a step: source, labelled target, unlabelled target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from examples.common.sampling import Sampler, generator
from examples.common.scenes.augment import random_crop_flip
from examples.common.scenes.domain import Domain, Size
from examples.common.scenes.labels import IGNORE_INDEX


class Augment(Protocol):
    """How an image and its label are cut for training; see `random_crop_flip`."""

    def __call__(
        self,
        image: Tensor,
        label: Tensor,
        size: Size | None,
        generator: torch.Generator,
        *,
        flip: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """The same window of both."""


@dataclass(frozen=True)
class Images:
    """`image` float32 (N, 3, H, W), `label` int64 (N, H, W) or None where there is none.

    `names` are the images' names, `positions` their places in the stream, which in all of training are theirs alone.
    `padding` (N, H, W) is true where an image without a label was too small for its crop; labels say it by 255.
    """

    image: Tensor
    label: Tensor | None
    names: tuple[str, ...]
    positions: tuple[int, ...]
    padding: Tensor | None = None

    def __getitem__(self, part: slice) -> Images:
        images = self._each(lambda plane: plane[part])
        return replace(images, names=self.names[part], positions=self.positions[part])

    def to(self, device: torch.device) -> Images:
        """The same on another device."""
        return self._each(lambda plane: plane.to(device, non_blocking=True))

    def pin_memory(self) -> Images:
        """The same in pinned memory: DataLoader asks for it."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Images:
        label, padding = (None if plane is None else change(plane) for plane in (self.label, self.padding))
        return replace(self, image=change(self.image), label=label, padding=padding)


@dataclass(frozen=True)
class Share:
    """What one of several ranks takes of each step's batch, where the batch comes in pieces that follow each other.

    Piece j of a step is the same images with any number of ranks; each rank takes as many of them.
    """

    rank: int = 0
    ranks: int = 1
    pieces: int = 1

    def places(self, batch_size: int) -> list[int]:
        """The places in the batch, piece by piece.

        Raises:
            ValueError: ranks and pieces do not divide the batch.
        """
        own, rest = divmod(batch_size, self.ranks * self.pieces)
        if rest:
            raise ValueError(
                f"data.batch_size must be a multiple of {self.ranks} ranks x training.accumulation = {self.pieces}, "
                f"got {batch_size}: it is the batch of each stream, of all ranks and pieces together"
            )
        first = [(piece * self.ranks + self.rank) * own for piece in range(self.pieces)]
        return [place + i for place in first for i in range(own)]


ALONE = Share()


@dataclass(frozen=True)
class Stream:
    """Where a stream's images come from; an unlabelled stream never reads a label."""

    number: int
    domain: Domain
    sampler: Sampler
    batch_size: int
    crop: Size | None
    labelled: bool
    flip: bool = True
    augment: Augment = random_crop_flip

    def batch(self, step: int, seed: int, share: Share = ALONE) -> Images:
        """The images of a step, or a share of them: positions step · batch_size and on."""
        positions = tuple(step * self.batch_size + place for place in share.places(self.batch_size))
        images, planes, names = [], [], []
        for position in positions:
            index = self.sampler(position)
            image = self.domain.image(index)
            label = self.domain.label(index) if self.labelled else torch.zeros(image.shape[-2:]).long()
            draws = generator(seed, position, 8 + self.number)
            image, label = self.augment(image, label, self.crop, draws, flip=self.flip)
            images.append(image)
            planes.append(label)
            names.append(self.domain.names[index])
        image, plane = torch.stack(images), torch.stack(planes)
        if self.labelled:
            return Images(image, plane, tuple(names), positions)
        return Images(image, None, tuple(names), positions, plane == IGNORE_INDEX)


class Steps(Dataset[dict[str, Images]]):
    """Item t is everything that step t needs, or a rank's share of it: `{stream's name: Images}`.

    An item depends on the seed and on t alone, so any number of DataLoader workers gives the same training.
    """

    def __init__(
        self, streams: Mapping[str, Stream], seed: int, start: int, stop: int, share: Share = ALONE
    ) -> None:
        self.streams, self.seed, self.start, self.stop, self.share = streams, seed, start, stop, share

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> dict[str, Images]:
        step = self.start + index
        return {name: stream.batch(step, self.seed, self.share) for name, stream in self.streams.items()}
