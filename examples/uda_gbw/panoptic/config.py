"""Typed configurations from TOML files, checked before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from examples.common.adaptation import FeatureDistanceConfig
from examples.common.config import at_least, decisive, load
from examples.common.recipe import TrainingConfig as RecipeConfig
from examples.common.scenes.config import StreamConfig
from examples.uda_gbw import config as uda
from examples.uda_gbw.panoptic.labels import CATEGORIES, Categories

CONFIGS = Path(__file__).parent / "configs"
_PLACES = {"data": ("source", "target")}  # where folders lie decides no outcome

Kind = Literal["streets", "synthia-cityscapes"]
MethodName = Literal["source_only", "edaps"]
_SEMANTIC: dict[str, uda.MethodName] = {"source_only": "source_only", "edaps": "daformer"}


@dataclass(frozen=True)
class DataConfig:
    """Where images come from. Sizes are (height, width).

    Of "streets" all are generated: the source by day, target and test in the evening, and none in two of these.
    """

    kind: Kind = "streets"
    height: int = 96  # of streets
    width: int = 128
    streets: int = 300  # of the source
    target_streets: int = 300  # without labels
    test_streets: int = 60
    source: str = ""  # folder of SYNTHIA
    target: str = ""  # folder of Cityscapes
    source_size: tuple[int, int] | None = (760, 1280)
    target_size: tuple[int, int] | None = (512, 1024)
    test_size: tuple[int, int] | None = (
        512,
        1024,
    )  # of the images; scores are taken at the label files' size
    crop: tuple[int, int] | None = None  # None: whole images
    batch_size: int = 2  # of source and of target each
    rare_class_sampling: bool = True  # of the source
    rare_class_temperature: float = 0.01
    rare_class_min_pixels: int = 1
    # Things that show fewer pixels are no instances: without centre and offset in training, void in the score. Their
    # pixels keep their class in the semantic loss.
    min_pixels: int = 1

    def __post_init__(self) -> None:
        at_least(self, 16, "height", "width")
        at_least(self, 1, "streets", "target_streets", "test_streets", "batch_size")
        at_least(self, 1, "rare_class_min_pixels", "min_pixels")


@dataclass(frozen=True)
class InstanceConfig:
    """Centres and offsets: how they are learnt, and how instances are made of them.

    The weights are those of EDAPS' variant with these heads (Saha et al., ICCV 2023); the rest is Panoptic-DeepLab's
    for Cityscapes at 1024x2048 (Cheng et al., CVPR 2020), the least area of stuff detectron2's.
    """

    sigma: float = 8.0  # pixels, of the Gaussian around a centre
    centre_weight: float = 10.0  # of the heat map's squared error
    offset_weight: float = 0.1  # of the offsets' absolute error, in pixels
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
class TrainingConfig(RecipeConfig):
    """The recipe: AdamW, a linear warm-up and a linear decay, the decoders' rate a multiple of the encoder's."""

    lr: float = 6e-5
    decoder_lr: float = 10.0  # times lr
    warmup: int = 1500  # steps
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "warmup")


@dataclass(frozen=True)
class Config:
    """One run. What the semantic half shares with examples/uda_gbw has that one's sections."""

    method: MethodName = "edaps"
    data: DataConfig = field(default_factory=DataConfig)
    model: uda.ModelConfig = field(default_factory=uda.ModelConfig)  # the decoder is that of either half
    weighting: uda.WeightingConfig = field(default_factory=uda.WeightingConfig)  # of the semantic losses
    self_training: uda.SelfTrainingConfig = field(default_factory=uda.SelfTrainingConfig)
    feature_distance: FeatureDistanceConfig = field(default_factory=FeatureDistanceConfig)
    instance: InstanceConfig = field(default_factory=InstanceConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    note: str = ""  # what published number it belongs to

    def __post_init__(self) -> None:
        self.semantic()  # refuses what the semantic half does not take

    @property
    def categories(self) -> Categories:
        """The classes."""
        return CATEGORIES[self.data.kind]

    def semantic(self) -> uda.Config:
        """The semantic half, as examples/uda_gbw trains it."""
        data = {
            name: getattr(self.data, name)
            for name in (
                "crop",
                "batch_size",
                "rare_class_sampling",
                "rare_class_temperature",
                "rare_class_min_pixels",
            )
        }
        known = self.feature_distance.classes or self.categories.known
        return uda.Config(
            method=_SEMANTIC[self.method],
            data=StreamConfig(**data),
            model=self.model,
            weighting=self.weighting,
            self_training=self.self_training,
            feature_distance=replace(self.feature_distance, classes=known),
            training=uda.TrainingConfig(seed=self.training.seed),
        )

    def as_dict(self) -> dict[str, Any]:
        """What decides the outcome, as plain data for JSON and checkpoints: where folders lie does not."""
        return decisive(self, _PLACES)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration by path, or by the name of a file in `examples/uda_gbw/panoptic/configs`; see `load`."""
    return load(Config, path, CONFIGS, overrides)
