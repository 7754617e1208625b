"""The data of a grid: CamVid-layout folders, or streets rendered on the spot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from classbalance_losses import ClassStatistics
from examples.common.camvid import CamVid
from examples.common.evaluation import LabelledImages
from examples.common.streets import Streets


@dataclass(frozen=True)
class BenchmarkData:
    """A training set and the named sets that runs are scored on; the first of them is the main one."""

    train: LabelledImages
    tests: Mapping[str, LabelledImages]
    classes: tuple[str, ...]
    ignore_index: int
    pixel_counts: Tensor  # (C,), of the training set


def load_data(config: Mapping[str, Any], folder: Path | None) -> BenchmarkData:
    """The data that a grid's `[data]` table describes.

    Args:
        config: `kind = "camvid"` with the splits `train` and `tests`, or `kind = "streets"` with `size` (H, W) and
            the numbers of images `train` and `test`.
        folder: where the CamVid-layout folder is; streets need none.
    """
    train, tests = _sets(config, folder)
    statistics = ClassStatistics(train.num_classes, ignore_index=train.ignore_index)
    for i in tqdm(range(len(train)), desc="count pixels", unit="image", leave=False, disable=None):
        statistics.update(train[i][1])
    return BenchmarkData(train, tests, train.classes, train.ignore_index, statistics.pixel_counts.clone())


def _sets(config: Mapping[str, Any], folder: Path | None) -> tuple[Any, dict[str, Any]]:
    if config["kind"] == "camvid":
        if folder is None:
            raise ValueError("this grid needs --data FOLDER, a folder in CamVid's layout")
        return CamVid(folder, config["train"]), {name: CamVid(folder, name) for name in config["tests"]}
    if config["kind"] == "streets":
        size = tuple(config["size"])
        return Streets(config["train"], size=size, seed=0), {"test": Streets(config["test"], size=size, seed=1)}
    raise ValueError(f'data.kind must be "camvid" or "streets", got {config["kind"]!r}')


def pixel_shares(counts: Tensor) -> list[float]:
    """Each class's share of the labelled pixels."""
    return (counts.double() / counts.sum().clamp(min=1)).to(torch.float64).tolist()
