"""Which scenes, and how they are cut and drawn: the `[data]` of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from examples.common.config import at_least

Kind = Literal["gta5-cityscapes", "synthia-cityscapes", "streets-camvid"]


@dataclass(frozen=True)
class StreamConfig:
    """Where source and target come from. Sizes are (height, width)."""

    kind: Kind = "streets-camvid"
    source: str = ""  # folder of GTA5 or SYNTHIA; streets need none
    target: str = ""  # folder of Cityscapes, or one in CamVid's layout
    source_size: tuple[int, int] | None = None
    target_size: tuple[int, int] | None = None
    test_size: tuple[int, int] | None = None  # of images; scores are at the labels' own. None: the files'
    crop: tuple[int, int] | None = None  # None: whole images
    batch_size: int = 2  # of each stream and step: all ranks and all pieces of the accumulation together
    rare_class_sampling: bool = False  # of the source
    rare_class_temperature: float = 0.01
    rare_class_min_pixels: int = 1
    streets: int = 300  # images of the source, streets-camvid alone
    train_split: str = "train_alt"
    test_splits: tuple[str, ...] = ("val_alt",)

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "streets", "rare_class_min_pixels")


@dataclass(frozen=True)
class DataConfig(StreamConfig):
    """The same, with labels of the target, or without a source."""

    budget: int = 100  # labelled target images
    splits: str = ""  # folder of the label lists; "" keeps them beside the runs
    split_seed: int = 42
    batch_size: int = 4
    use_source: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "budget")
