"""Sections of configurations for parts of the adaptation methods on which papers build: DAFormer, HRDA, MIC."""

from __future__ import annotations

from dataclasses import dataclass

from examples.common.config import at_least, in_unit


@dataclass(frozen=True)
class FeatureDistanceConfig:
    """DAFormer: the source's features of things stay near to those of the first, pretrained encoder."""

    weight: float = 0.005
    classes: tuple[str, ...] = ()  # of the things; (): the data set's own, see `examples/common/things.py`
    share: float = 0.75  # a cell belongs to a class that has at least this share of its pixels

    def __post_init__(self) -> None:
        in_unit(self, "share")


@dataclass(frozen=True)
class HrdaConfig:
    """HRDA: two resolutions, the image at half its size, and a window of half its sides at full size."""

    enabled: bool = False
    detail_weight: float = 0.1  # of the window's own loss; that of the fused logits has the rest

    def __post_init__(self) -> None:
        in_unit(self, "detail_weight")


@dataclass(frozen=True)
class MicConfig:
    """Masked image consistency: the target is labelled where blocks of it are hidden."""

    enabled: bool = False
    weight: float = 1.0
    ratio: float = 0.7  # of the blocks that are hidden
    block: int = 64  # side of a block, in pixels

    def __post_init__(self) -> None:
        at_least(self, 1, "block")
        in_unit(self, "ratio")
