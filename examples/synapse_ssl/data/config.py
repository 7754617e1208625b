"""Which volumes, how many of them labelled, and how large the patches are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from examples.common.config import at_least

Size = tuple[int, int, int]  # depth, height, width


@dataclass(frozen=True)
class DataConfig:
    """The data of a run. Sizes are (depth, height, width) in voxels."""

    kind: Literal["btcv", "acdc", "chaos", "organs"] = "organs"
    folder: str = ""  # organs need none
    preprocessing: Literal["resize", "half"] = "resize"  # btcv alone: see `btcv.py`
    budget: float = 0.2  # the share of the training patients that are labelled
    split_seed: int = 0
    patch: Size = (64, 128, 128)
    batch_size: int = 2  # of each stream
    size: Size | None = None  # every volume is resampled to it; None: as it is, organs 48 x 96 x 96
    cases: tuple[int, int, int] = (20, 4, 6)  # organs alone: volumes of training, validation and test

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size")
        for name in ("patch", "size", "cases"):
            value = getattr(self, name)
            if value is not None and (len(value) != 3 or min(value) < 1):
                raise ValueError(f"{name} must be three numbers of at least 1, got {value}")
        if not 0 < self.budget <= 1:
            raise ValueError(
                f"budget is a share of the training patients, 0 < budget <= 1, got {self.budget}"
            )
        if self.kind == "btcv" and self.preprocessing == "half" and self.size is not None:
            raise ValueError(
                'preprocessing = "half" keeps each volume\'s depth: drop data.size, or take "resize"'
            )
        if self.size is not None:
            check_patch("data.size", self.size, self.patch)


def check_patch(name: str, size: Size, patch: Size) -> None:
    """Raise ValueError where a volume of this size does not hold a patch: padding would stand for data."""
    if any(have < want for have, want in zip(size, patch, strict=True)):
        raise ValueError(
            f"{name} is {size}, smaller than the patch, {patch}: lower data.patch, or choose a larger data.size"
        )
