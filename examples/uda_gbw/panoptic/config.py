"""Typed configurations from TOML files, checked before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from examples.common.config import at_least, load, plain
from examples.uda_gbw.config import WeightingConfig

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class DataConfig:
    """Generated streets. Those of training and of the test share no scene."""

    height: int = 96
    width: int = 128
    streets: int = 300  # of training
    test_streets: int = 60
    batch_size: int = 4
    # Things that show fewer pixels are no instances: without centre and offset in training, void in the score. Their
    # pixels keep their class in the semantic loss.
    min_pixels: int = 16

    def __post_init__(self) -> None:
        at_least(self, 16, "height", "width")
        at_least(self, 1, "streets", "test_streets", "batch_size", "min_pixels")


@dataclass(frozen=True)
class ModelConfig:
    """The network; see `networks.PanopticNetwork`."""

    encoder: str = "efficientnet-lite0"  # or one of those in examples/uda_gbw/networks/encoders.py
    channels: int = 64  # of either decoder
    dropout: float = 0.1  # of whole channels, before the semantic decoder's last layer

    def __post_init__(self) -> None:
        at_least(self, 1, "channels")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")


@dataclass(frozen=True)
class InstanceConfig:
    """Centres and offsets: how they are learnt, and how instances are made of them.

    The defaults are Panoptic-DeepLab's for Cityscapes at 1024x2048 (Cheng et al., CVPR 2020); the least area of stuff
    is that of detectron2's version.
    """

    sigma: float = 8.0  # pixels, of the Gaussian around a centre
    centre_weight: float = 200.0  # of the heat map's squared error
    offset_weight: float = 0.01  # of the offsets' absolute error, in pixels
    threshold: float = 0.1  # a centre's heat is above it
    window: int = 7  # pixels, odd: a centre's heat is the greatest of the square around it
    most: int = 200  # centres of an image
    stuff_area: int = 2048  # pixels: less of a stuff class in an image becomes void

    def __post_init__(self) -> None:
        at_least(self, 0, "centre_weight", "offset_weight", "stuff_area")
        at_least(self, 1, "window", "most")
        if self.sigma <= 0:
            raise ValueError(f"sigma must be positive, got {self.sigma}")
        if self.window % 2 == 0:
            raise ValueError(f"window must be odd, got {self.window}")


@dataclass(frozen=True)
class TrainingConfig:
    """The recipe: AdamW, a linear warm-up and a linear decay, the decoders' rate a multiple of the encoder's."""

    iterations: int = 300
    lr: float = 1e-3
    decoder_lr: float = 2.0  # times lr
    weight_decay: float = 0.01
    warmup: int = 20  # steps
    seed: int = 0
    workers: int = 0
    log_every: int = 10  # losses and class weights
    eval_every: int = 0  # 0: at the end alone
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        at_least(self, 1, "iterations", "log_every", "checkpoint_every")
        at_least(self, 0, "eval_every", "workers", "warmup")


@dataclass(frozen=True)
class Config:
    """One run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    weighting: WeightingConfig = field(default_factory=WeightingConfig)  # of the semantic loss alone
    instance: InstanceConfig = field(default_factory=InstanceConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    note: str = ""  # what published number it belongs to

    def as_dict(self) -> dict[str, Any]:
        """What decides the outcome, as plain data for JSON and checkpoints."""
        content: dict[str, Any] = plain(asdict(self))
        return content


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration by path, or by the name of a file in `examples/uda_gbw/panoptic/configs`; see `load`."""
    return load(Config, path, CONFIGS, overrides)
