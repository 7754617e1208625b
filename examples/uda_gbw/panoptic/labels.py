"""Classes, which of them are things, and a pixel's class and instance as one number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from examples.common import streets
from examples.common.scenes.labels import CLASSES, IGNORE_INDEX, SUBSETS
from examples.common.things import THINGS

_NUMBERS = 256  # of classes; the last, 255, is unlabelled


@dataclass(frozen=True)
class Categories:
    """The classes of a task.

    Attributes:
        names: of all.
        things: the indices of those that are counted.
        known: those whose features the feature distance keeps near to ImageNet's.
    """

    names: tuple[str, ...]
    things: tuple[int, ...]
    known: tuple[str, ...]

    @property
    def stuff(self) -> tuple[int, ...]:
        """The indices of all others."""
        return tuple(index for index in range(len(self.names)) if index not in self.things)


SHARED: tuple[int, ...] = SUBSETS[16]
"""The train ids of Cityscapes' classes that SYNTHIA has, in their order: what is trained from one to the other."""

_NAMES = tuple(CLASSES[index] for index in SHARED)
_COUNTED = ("person", "rider", "car", "bus", "motorcycle", "bicycle")
CATEGORIES: Mapping[str, Categories] = {
    "streets": Categories(streets.CLASSES, streets.THINGS, THINGS["camvid"]),
    "synthia-cityscapes": Categories(
        _NAMES,
        tuple(_NAMES.index(name) for name in _COUNTED),
        tuple(name for name in THINGS["cityscapes"] if name in _NAMES),
    ),
}


def coded(label: NDArray[np.integer], instance: NDArray[np.integer]) -> NDArray[np.int32]:
    """Classes and instances (H, W) as one map, which readers, crops and samplers take for a map of labels.

    An instance's number is positive and its own in its image; 0 is stuff, unlabelled, or things that are not told
    apart. A pixel without class and instance has the code `IGNORE_INDEX`, with which crops fill up.
    """
    return instance.astype(np.int32) * _NUMBERS + label


def decoded(code: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (..., H, W) -> classes and instances."""
    return code % _NUMBERS, code // _NUMBERS


def without_small(code: Tensor, min_pixels: int) -> Tensor:
    """Codes (H, W) in which things of fewer pixels are not told apart; their pixels keep their class."""
    label, instance = decoded(code)
    return torch.where(torch.bincount(instance.flatten())[instance] < min_pixels, label, code)


def uncounted(label: Tensor, instance: Tensor, things: tuple[int, ...]) -> Tensor:
    """Pixels (..., H, W) that say nothing of instances: unlabelled ones, and things that are not told apart."""
    thing = torch.isin(label, torch.tensor(things, device=label.device))
    return (label == IGNORE_INDEX) | (thing & (instance == 0))
