"""Phantoms of the upper abdomen, `examples.common.organs`, as a task."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor

from examples.common.organs import CLASSES, SIZE, render_organs
from examples.synapse_ssl.data.config import DataConfig, Size, check_patch
from examples.synapse_ssl.data.splits import kept_labelled
from examples.synapse_ssl.data.task import Stored, Subset, Task

_FIRST = {"train": 0, "validation": 10_000, "test": 20_000}  # the numbers of the volumes


def organs_task(config: DataConfig, kept: Path) -> Task:
    """Phantoms as a task; see `load_task`.

    Raises:
        ValueError: the patch is larger than the phantoms.
    """
    size = config.size or SIZE
    check_patch("the phantoms' size", size, config.patch)
    train, validation, test = (
        _cases(split, number, size) for split, number in zip(_FIRST, config.cases, strict=True)
    )
    lists = kept / "splits" / f"organs-{len(train.names)}-seed{config.split_seed}"
    labelled = kept_labelled(lists, train.names, config.budget, config.split_seed)
    others = [name for name in train.names if name not in set(labelled)] or train.names
    return Task(CLASSES, Subset(train, labelled), Subset(train, others), validation, test)


def _cases(split: str, number: int, size: Size) -> Stored:
    names = [f"organs_{split}_{i:03d}" for i in range(number)]
    rendered: dict[int, tuple[Tensor, Tensor]] = {}

    def read(part: int, index: int) -> Tensor:
        if index not in rendered:
            rendered[index] = render_organs(_FIRST[split] + index, size)
        return rendered[index][part]

    readers: tuple[Callable[[int], Tensor], Callable[[int], Tensor]] = partial(read, 0), partial(read, 1)
    return Stored(names, *readers)
