"""The batches of a step: labelled and unlabelled patches."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from examples.common.sampling import Shuffled, generator
from examples.synapse_ssl.data.config import DataConfig, Size
from examples.synapse_ssl.data.task import Cases, Task

_LABELLED, _UNLABELLED = range(2)  # the streams
_CROPS = 8  # what keeps the draws of a stream's crops apart from those of its order


@dataclass(frozen=True)
class Patches:
    """`image` float32 (N, 1, D, H, W), `label` int64 (N, D, H, W) or None where there is none, the volumes' names."""

    image: Tensor
    label: Tensor | None
    names: tuple[str, ...]

    def to(self, device: torch.device) -> Patches:
        """The same on another device."""
        label = None if self.label is None else self.label.to(device, non_blocking=True)
        return replace(self, image=self.image.to(device, non_blocking=True), label=label)

    def pin_memory(self) -> Patches:
        """The same in pinned memory: DataLoader asks for it."""
        label = None if self.label is None else self.label.pin_memory()
        return replace(self, image=self.image.pin_memory(), label=label)


class Steps(Dataset[dict[str, Patches]]):
    """Item t is everything that step `start` + t needs: `{"labelled": Patches, "unlabelled": Patches}`.

    An item depends on the seed and on the step alone, so any number of DataLoader workers gives the same training.
    Each stream goes through its volumes in epochs, in another order each epoch, and takes one patch of each; the
    published code repeats the labelled list to the length of the unlabelled one, which is the same but for the order.

    Args:
        task: the data. The unlabelled volumes' labels are never read.
        config: the patch's size and the batch size of each stream.
        seed: of the order, the crops and the flips.
        start: the first step.
        stop: the step after the last one.
        unlabelled: have the unlabelled stream.
    """

    def __init__(
        self, task: Task, config: DataConfig, seed: int, start: int, stop: int, *, unlabelled: bool = True
    ) -> None:
        self.seed, self.start, self.stop = seed, start, stop
        self._streams = {"labelled": _Stream(_LABELLED, task.labelled, config, seed, labelled=True)}
        if unlabelled:
            self._streams["unlabelled"] = _Stream(_UNLABELLED, task.unlabelled, config, seed, labelled=False)

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> dict[str, Patches]:
        return {name: stream.batch(self.start + index) for name, stream in self._streams.items()}


def random_patch(
    image: Tensor, label: Tensor | None, size: Size, draws: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """A random crop, then each in-plane axis mirrored with probability 1/2.

    A volume that is smaller than the patch is padded about its centre, with 0 in the image and background in the label.
    Mirroring swaps the left and right kidney without swapping their classes, as the published code does.

    Args:
        image: (1, D, H, W).
        label: (D, H, W) or None.
        size: the patch's (depth, height, width).
        draws: what the crop and the mirroring are drawn from.
    """
    image, label = _padded(image, size), None if label is None else _padded(label, size)
    starts = [
        int(torch.randint(have - want + 1, (1,), generator=draws))
        for have, want in zip(image.shape[1:], size, strict=True)
    ]
    place = (..., *(slice(start, start + want) for start, want in zip(starts, size, strict=True)))
    axes = [axis for axis in (-2, -1) if torch.rand((), generator=draws) < 0.5]
    return image[place].flip(axes), None if label is None else label[place].flip(axes)


class _Stream:
    def __init__(self, number: int, cases: Cases, config: DataConfig, seed: int, *, labelled: bool) -> None:
        self.number, self.cases, self.config = number, cases, config
        self.seed, self.labelled = seed, labelled
        self.order = Shuffled(len(cases.names), seed, number)

    def batch(self, step: int) -> Patches:
        """The patches of a step: positions step · batch_size and on."""
        images, labels, names = [], [], []
        for position in range(step * self.config.batch_size, (step + 1) * self.config.batch_size):
            index = self.order(position)
            label = self.cases.label(index) if self.labelled else None
            draws = generator(self.seed, position, _CROPS + self.number)
            image, label = random_patch(self.cases.image(index), label, self.config.patch, draws)
            images.append(image)
            labels.append(label)
            names.append(self.cases.names[index])
        joined = torch.stack([x for x in labels if x is not None]) if self.labelled else None
        return Patches(torch.stack(images), joined, tuple(names))


def _padded(volume: Tensor, size: Size) -> Tensor:
    padding: list[int] = []
    for have, want in zip(reversed(volume.shape[-3:]), reversed(size), strict=True):  # F.pad goes backwards
        missing = max(want - have, 0)
        padding += [missing // 2, missing - missing // 2]
    return F.pad(volume, padding) if any(padding) else volume
