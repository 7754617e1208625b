"""The data of a run: labelled and unlabelled training volumes, validation and test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from examples.synapse_ssl.data.config import DataConfig, Size

__all__ = ["Cases", "Size", "Stored", "Subset", "Task", "load_task"]


class Cases(Protocol):
    """A list of volumes, read when they are asked for. The unlabelled stream calls `image` and never `label`."""

    @property
    def names(self) -> tuple[str, ...]:
        """A unique name for each volume."""

    def image(self, index: int) -> Tensor:
        """Volume `index`, float32 (1, D, H, W) in [0, 1]; sizes may differ between volumes."""

    def label(self, index: int) -> Tensor:
        """Its class indices, int64 (D, H, W)."""


class Stored:
    """Cases that stay in memory once they are read: images as float32, labels as uint8.

    `image` gives the stored tensor itself, so do not write to it. Each worker of a DataLoader has a memory of its own.

    Args:
        names: a name for each volume.
        read_image: index -> float32 (1, D, H, W).
        read_label: index -> uint8 (D, H, W).
    """

    def __init__(
        self,
        names: Sequence[str],
        read_image: Callable[[int], Tensor],
        read_label: Callable[[int], Tensor],
    ) -> None:
        self._names = tuple(names)
        self._read_image, self._read_label = read_image, read_label
        self._images: dict[int, Tensor] = {}
        self._labels: dict[int, Tensor] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """A unique name for each volume."""
        return self._names

    def image(self, index: int) -> Tensor:
        """Volume `index`, float32 (1, D, H, W) in [0, 1]."""
        if index not in self._images:
            self._images[index] = self._read_image(index)
        return self._images[index]

    def label(self, index: int) -> Tensor:
        """Its class indices, int64 (D, H, W)."""
        if index not in self._labels:
            self._labels[index] = self._read_label(index)
        return self._labels[index].long()


class Subset:
    """Some volumes of other cases, by their names."""

    def __init__(self, cases: Cases, names: Sequence[str]) -> None:
        places = {name: place for place, name in enumerate(cases.names)}
        self._cases, self._names = cases, tuple(names)
        self._places = [places[name] for name in names]

    @property
    def names(self) -> tuple[str, ...]:
        """A unique name for each volume."""
        return self._names

    def image(self, index: int) -> Tensor:
        """Volume `index`, float32 (1, D, H, W) in [0, 1]."""
        return self._cases.image(self._places[index])

    def label(self, index: int) -> Tensor:
        """Its class indices, int64 (D, H, W)."""
        return self._cases.label(self._places[index])


@dataclass(frozen=True)
class Task:
    """What a run trains on and is scored on. Class 0 is the background."""

    classes: tuple[str, ...]
    labelled: Cases
    unlabelled: Cases  # where all training volumes are labelled: all of them, read without their labels
    validation: Cases
    test: Cases


def load_task(config: DataConfig, kept: Path, *, progress: bool = False) -> Task:
    """The task of a configuration. `kept` keeps what is computed once: lists of labelled patients, volumes.

    Args:
        config: the data of the run.
        kept: a folder; it is made where it is missing.
        progress: show a progress bar where volumes are prepared.

    Raises:
        FileNotFoundError: the data folder or a file of it is missing; the message says what was expected.
        ValueError: a file cannot be used (see `btcv.py`, `folders.py`), or volumes are smaller than the patch.
    """
    # The kinds build on what stands above.
    from examples.synapse_ssl.data.btcv import btcv_task  # noqa: PLC0415
    from examples.synapse_ssl.data.folders import folder_task  # noqa: PLC0415
    from examples.synapse_ssl.data.organs import organs_task  # noqa: PLC0415

    if config.kind == "btcv":
        return btcv_task(config, kept, progress=progress)
    return organs_task(config, kept) if config.kind == "organs" else folder_task(config, kept)
