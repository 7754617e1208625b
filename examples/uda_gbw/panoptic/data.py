"""Streets whose things are told apart, and the batches of a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from examples.common.sampling import Shuffled, generator
from examples.common.streets import CLASSES, IGNORE_INDEX, THINGS, render_instances
from examples.common.streets.dataset import STRIDE
from examples.uda_gbw.data import Classes
from examples.uda_gbw.panoptic.config import DataConfig

TRAIN, TEST = 0, 1  # the sets of streets
_ORDER, _FLIPS = 0, 8  # streams of random numbers
Sample = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Batch:
    """`image` float32 (N, 3, H, W), `label` and `instance` int64 (N, H, W).

    An instance's number is positive and its own in its image; 0 is stuff, unlabelled, or things too small to count.
    """

    image: Tensor
    label: Tensor
    instance: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(*(x.to(device, non_blocking=True) for x in (self.image, self.label, self.instance)))

    def pin_memory(self) -> Batch:
        """The same in pinned memory: DataLoader asks for it."""
        return Batch(self.image.pin_memory(), self.label.pin_memory(), self.instance.pin_memory())


class PanopticStreets:
    """`length` streets with instances, rendered when they are first asked for and kept as bytes in this process.

    Args:
        length: number of streets.
        config: their size, and how many pixels make an instance.
        number: which set; sets share no street.
    """

    def __init__(self, length: int, config: DataConfig, number: int) -> None:
        self.length, self.number = length, number
        self.size, self.min_pixels = (config.height, config.width), config.min_pixels
        self._kept: dict[int, tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int32]]] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        """Image (3, H, W) in [0, 1], labels (H, W) and instances (H, W), as in `Batch`."""
        if index not in self._kept:
            self._kept[index] = render_instances(self.number * STRIDE + index, self.size)
        image, label, instance = self._kept[index]
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div_(255)
        numbers = without_small(torch.from_numpy(instance).long(), self.min_pixels)
        return pixels, torch.from_numpy(label).long(), numbers

    def classes(self) -> Classes:
        """The classes, and the pixels of each in each street."""
        counts = []
        for i in range(len(self)):
            label = self[i][1]
            counts.append(torch.bincount(label[label != IGNORE_INDEX], minlength=len(CLASSES)))
        return Classes(CLASSES, torch.stack(counts))


class Steps(Dataset[dict[str, Batch]]):
    """Item t is the batch of step `start + t`, half of its images mirrored: a function of the seed and the step."""

    def __init__(self, streets: PanopticStreets, batch_size: int, seed: int, start: int, stop: int) -> None:
        self.streets, self.batch_size, self.seed = streets, batch_size, seed
        self.start, self.stop = start, stop
        self._order = Shuffled(len(streets), seed, _ORDER)

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> dict[str, Batch]:
        first = (self.start + index) * self.batch_size
        samples = [self._sample(position) for position in range(first, first + self.batch_size)]
        return {"source": Batch(*(torch.stack(part) for part in zip(*samples, strict=True)))}

    def _sample(self, position: int) -> Sample:
        image, label, instance = self.streets[self._order(position)]
        if torch.rand((), generator=generator(self.seed, position, _FLIPS)) < 0.5:
            return image.flip(-1), label.flip(-1), instance.flip(-1)
        return image, label, instance


def without_small(instance: Tensor, min_pixels: int) -> Tensor:
    """Instance numbers (H, W) with 0 in place of instances that have fewer pixels."""
    return torch.where(torch.bincount(instance.flatten())[instance] < min_pixels, 0, instance)


def uncounted(label: Tensor, instance: Tensor) -> Tensor:
    """Pixels (..., H, W) that say nothing of instances: unlabelled ones, and things too small to count."""
    things = torch.tensor(THINGS, device=label.device)
    return (label == IGNORE_INDEX) | (torch.isin(label, things) & (instance == 0))
