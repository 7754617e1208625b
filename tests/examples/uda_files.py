"""What the tests of examples/uda_gbw share: configurations, checkpoints and logs of small runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from examples.common.logs import read_log
from examples.common.training import CHECKPOINT
from examples.uda_gbw.config import Config, load_config

COST = ("images_per_second", "peak_memory_mib")


def small_config(place: Path, *overrides: str) -> Config:
    """The smoke test's configuration with overrides, on `place/target`."""
    config = load_config("smoke", overrides)
    return replace(config, data=replace(config.data, target=str(place / "target")))


def checkpoint(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / CHECKPOINT, weights_only=True)
    return state


def losses(folder: Path) -> list[dict[str, float]]:
    """The log without what differs between machines."""
    rows = read_log(folder / "log.csv")
    return [{key: value for key, value in row.items() if key not in COST} for row in rows]


def different(one: Any, other: Any, where: str = "") -> list[str]:
    """The places where two nested states differ."""
    if isinstance(one, Tensor):
        return [] if torch.equal(one, other) else [where]
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return [place for key in one for place in different(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, (list, tuple)):
        pairs = enumerate(zip(one, other, strict=True))
        return [place for i, pair in pairs for place in different(*pair, f"{where}.{i}")]
    return [] if one == other else [where]
