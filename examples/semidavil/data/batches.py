"""The batches of a step: source, labelled target, unlabelled target."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from examples.semidavil.data.augment import random_crop_flip
from examples.semidavil.data.domain import Domain, Size
from examples.semidavil.data.sampling import Sampler, generator


@dataclass(frozen=True)
class Images:
    """`image` float32 (N, 3, H, W), `label` int64 (N, H, W) or None where there is none, and the images' names."""

    image: Tensor
    label: Tensor | None
    names: tuple[str, ...]

    def to(self, device: torch.device) -> Images:
        """The same on another device."""
        label = None if self.label is None else self.label.to(device, non_blocking=True)
        return replace(self, image=self.image.to(device, non_blocking=True), label=label)

    def pin_memory(self) -> Images:
        """The same in pinned memory: DataLoader asks for it."""
        label = None if self.label is None else self.label.pin_memory()
        return replace(self, image=self.image.pin_memory(), label=label)


@dataclass(frozen=True)
class Stream:
    """Where a stream's images come from; an unlabelled stream never reads a label."""

    number: int
    domain: Domain
    sampler: Sampler
    batch_size: int
    crop: Size | None
    labelled: bool

    def batch(self, step: int, seed: int) -> Images:
        """The images of a step: positions step · batch_size and on."""
        images, labels, names = [], [], []
        for position in range(step * self.batch_size, (step + 1) * self.batch_size):
            index = self.sampler(position)
            label = self.domain.label(index) if self.labelled else None
            draws = generator(seed, position, 8 + self.number)
            image, label = random_crop_flip(self.domain.image(index), label, self.crop, draws)
            images.append(image)
            labels.append(label)
            names.append(self.domain.names[index])
        joined = torch.stack([x for x in labels if x is not None]) if self.labelled else None
        return Images(torch.stack(images), joined, tuple(names))


class Steps(Dataset[dict[str, Images]]):
    """Item t is everything that step t needs: `{stream's name: Images}`.

    An item depends on the seed and on t alone, so any number of DataLoader workers gives the same training.
    """

    def __init__(self, streams: dict[str, Stream], seed: int, start: int, stop: int) -> None:
        self.streams, self.seed, self.start, self.stop = streams, seed, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> dict[str, Images]:
        return {name: stream.batch(self.start + index, self.seed) for name, stream in self.streams.items()}
