"""The data of a run: streets by day and in the evening, or SYNTHIA and Cityscapes; labels are codes, see `labels`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from examples.common.scenes.domain import Domain
from examples.common.scenes.sampling import class_counts
from examples.common.scenes.task import Task
from examples.common.streets import render_instances
from examples.common.streets.dataset import STRIDE
from examples.uda_gbw.data import Classes
from examples.uda_gbw.panoptic.config import DataConfig
from examples.uda_gbw.panoptic.labels import CATEGORIES, coded, decoded, without_small
from examples.uda_gbw.panoptic.layouts import cityscapes, synthia

SOURCE, TEST, TARGET = 0, 1, 2  # the sets of streets; they share no scene
_EVENING = torch.tensor([1.0, 0.8, 0.55]).view(3, 1, 1)
_DARK = 1.6  # exponent of the brightness


class StreetScenes:
    """`length` streets with instances, rendered when they are first asked for and kept as bytes in this process.

    Args:
        length: number of streets.
        size: (height, width).
        number: which set.
        evening: darker, and in another light: another domain.
    """

    def __init__(self, length: int, size: tuple[int, int], number: int, *, evening: bool = False) -> None:
        self.size, self.number, self.evening = size, number, evening
        self.names: Sequence[str] = tuple(f"street_{number * STRIDE + i:07d}" for i in range(length))
        self._kept: dict[int, tuple[NDArray[np.uint8], NDArray[np.int32]]] = {}

    def image(self, index: int) -> Tensor:
        """Image `index`, float32 (3, H, W) in [0, 1]."""
        pixels = torch.from_numpy(self._rendered(index)[0]).permute(2, 0, 1).float().div_(255).contiguous()
        return pixels.pow(_DARK) * _EVENING if self.evening else pixels

    def label(self, index: int) -> Tensor:
        """Its codes, int64 (H, W)."""
        return torch.from_numpy(self._rendered(index)[1]).long()

    def _rendered(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        if index not in self._kept:
            image, label, instance = render_instances(self.number * STRIDE + index, self.size)
            self._kept[index] = (np.ascontiguousarray(image), coded(label, instance))
        return self._kept[index]


class Counted:
    """A domain of codes in which things of fewer than `min_pixels` are no instances."""

    def __init__(self, domain: Domain, min_pixels: int) -> None:
        self._domain, self._min_pixels, self.names = domain, min_pixels, domain.names

    def image(self, index: int) -> Tensor:
        """Image `index`, float32 (3, H, W) in [0, 1]."""
        return self._domain.image(index)

    def label(self, index: int) -> Tensor:
        """Its codes, int64 (H, W)."""
        return without_small(self._domain.label(index), self._min_pixels)


class Semantic:
    """The classes of a domain of codes."""

    def __init__(self, domain: Domain) -> None:
        self._domain, self.names = domain, domain.names

    def image(self, index: int) -> Tensor:
        """Image `index`, float32 (3, H, W) in [0, 1]."""
        return self._domain.image(index)

    def label(self, index: int) -> Tensor:
        """Its class indices, int64 (H, W)."""
        return decoded(self._domain.label(index))[0]


def load_task(config: DataConfig) -> Task:
    """Source, target and test set of a configuration; no image of the target is labelled.

    Raises:
        FileNotFoundError: a data folder is missing or has another layout.
        ValueError: no folder is named.
    """
    names = CATEGORIES[config.kind].names
    source, target, tests = _streets(config) if config.kind == "streets" else _files(config)
    return Task(
        Counted(source, config.min_pixels),
        target,
        (),
        {name: Counted(test, config.min_pixels) for name, test in tests.items()},
        names,
        {f"mIoU{len(names)}": tuple(range(len(names)))},
    )


def source_classes(task: Task, config: DataConfig, kept: Path) -> Classes:
    """Count the source's labels, once: `kept` keeps the counts."""
    height, width = task.source.label(0).shape
    cache = kept / f"panoptic_counts-{config.kind}-{height}x{width}.pt"
    return Classes(task.classes, class_counts(Semantic(task.source), len(task.classes), cache))


def _streets(config: DataConfig) -> tuple[Domain, Domain, dict[str, Domain]]:
    size = (config.height, config.width)
    return (
        StreetScenes(config.streets, size, SOURCE),
        StreetScenes(config.target_streets, size, TARGET, evening=True),
        {"evening": StreetScenes(config.test_streets, size, TEST, evening=True)},
    )


def _files(config: DataConfig) -> tuple[Domain, Domain, dict[str, Domain]]:
    for key in ("source", "target"):
        if not getattr(config, key):
            raise ValueError(
                f"{config.kind} needs the folder of its {key}: --{key} FOLDER, or data.{key} in the configuration"
            )
    return (
        synthia(config.source, config.source_size),
        cityscapes(config.target, "train", config.target_size),
        {"val": cityscapes(config.target, "val", config.test_size, resize_labels=False)},
    )
