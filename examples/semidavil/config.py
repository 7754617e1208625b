"""Typed configurations from TOML files, checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from examples.common.config import at_least, below_one, decisive, load
from examples.common.recipe import TrainingConfig as RecipeConfig
from examples.common.scenes.config import DataConfig as SceneConfig

CONFIGS = Path(__file__).parent / "configs"
_PLACES = {"data": ("source", "target"), "model": ("caption_file",)}

LossName = Literal["CE", "WCE", "DCE", "FL", "DFL", "DyCE"]
Guidance = Literal["paper", "code", "cross_attention", "correlation", "vlga"]
Captions = Literal["domain", "predicted", "file"]


@dataclass(frozen=True)
class DataConfig(SceneConfig):
    """Where images come from; §4.2 names resizing and random crops, and nothing else that changes them."""

    flip: bool = False  # mirror half of the images: not in the paper
    cache_features: Literal["off", "memory", "disk"] = "off"  # of frozen encoders, see model/cache.py


@dataclass(frozen=True)
class ComponentConfig:
    """The parts that Table 3 switches off."""

    consistency: bool = True  # CT: consistency training
    dyce: bool = True  # DyCE: off is plain cross-entropy in place of `loss`
    pretraining: bool = True  # VLP: off is `model.vision_without_vlp`, with ImageNet weights
    guidance: bool = True  # DLG: off is a decoder that sees the image alone


@dataclass(frozen=True)
class ModelConfig:
    """The networks."""

    vision: str = "efficientnet-lite0"  # or "clip:PATH-OR-HUB-NAME", "clip-tiny"
    vision_without_vlp: str = "efficientnet-lite0"  # of ImageNet; or "vit:PATH-OR-HUB-NAME", "vit-tiny"
    train_vision: bool = False
    train_without_vlp: bool = False  # train the encoder where it stands in for the vision-language one
    dense: Literal["values", "tokens"] = "values"  # CLIP's last map; see examples.common.vision.ClipVision
    text: str = "minilm"  # or "clip:PATH-OR-HUB-NAME", "clip-tiny"
    captions: Captions = "domain"
    caption_file: str = ""  # for captions = "file": written by `python -m examples semidavil caption`
    scene: str = "a street scene"  # how composed captions begin
    guidance: Guidance = "paper"
    guidance_channels: int = 128  # c of equation 2
    decoder_channels: int = 128
    dropout: float = 0.0  # of whole channels, before the decoder's last layer: not in the paper
    max_tokens: int = 48  # n_L of equation 3; longer captions are cut

    def __post_init__(self) -> None:
        at_least(self, 1, "guidance_channels", "decoder_channels", "max_tokens")
        below_one(self, "dropout")


@dataclass(frozen=True)
class ConsistencyConfig:
    """Equation 4 as printed; `losses.ConsistencyLoss` has the other readings, and what the printed one asks for."""

    weight: float = 1.0
    threshold: float = 0.95
    confidence: Literal["teacher", "student"] = "student"
    normalize: Literal["confident", "pixels", "images"] = "images"
    ema_decay: float = 0.999
    ema_warmup: bool = False  # min(decay, 1 - 1/(step + 1)): for schedules short beside 1 / (1 - decay)
    strength: float = 0.0  # of strong views for the student: not in the paper; 0 is none


@dataclass(frozen=True)
class TrainingConfig(RecipeConfig):
    """The recipe of §4.2, whose optimiser is not named: a momentum of 0.9 is SGD's. The released code takes AdamW.

    "exponential" multiplies the rate by `decay` after every `decay_every` steps. The paper does not say per what its
    rate decays; an epoch is the usual meaning, and an epoch of what it adapts to, the target's training images, the
    reading here. Per step, nothing would be left after a hundred of them.
    """

    accumulation: int = 1  # pieces that a step's batch is cut into, one after another; see engine.Engine
    lr: float = 1e-4
    weight_decay: float = 2e-4
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9  # of "sgd"
    schedule: Literal["exponential", "poly", "constant", "one_cycle"] = "exponential"
    decay: float = 0.9  # factor of "exponential"
    decay_every: int = 0  # steps between its decays; 0: as many as see every target image once
    power: float = 0.9  # of "poly"
    amp: Literal["off", "bfloat16", "float16"] = "off"
    evaluate: Literal["student", "teacher"] = "student"
    window: tuple[int, int] | None = None  # of the sliding window; None: whole images
    stride: tuple[int, int] | None = None  # None: two thirds of the window

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "accumulation")
        at_least(self, 0, "decay_every")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must be in (0, 1], got {self.decay}")
        below_one(self, "momentum")


@dataclass(frozen=True)
class Config:
    """One run."""

    data: DataConfig = field(default_factory=DataConfig)
    components: ComponentConfig = field(default_factory=ComponentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossName = "DyCE"
    loss_options: Mapping[str, Any] = field(default_factory=dict)
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    note: str = ""  # what published number it belongs to

    def __post_init__(self) -> None:
        fixed = self.data.crop is None and not self.data.flip and not self.consistency.strength
        if self.data.cache_features != "off" and (self.trains_vision or not fixed):
            raise ValueError(
                "data.cache_features needs a frozen encoder and images that never change: model.train_vision=false, "
                "data.crop=[], data.flip=false, consistency.strength=0"
            )

    @property
    def trains_vision(self) -> bool:
        """Whether the vision encoder is trained.

        §3.1 starts it from CLIP's weights in place of ImageNet's: weights in place of weights, so the ImageNet encoder
        is frozen where CLIP's is.
        """
        return self.model.train_vision or (self.model.train_without_vlp and not self.components.pretraining)

    def as_dict(self) -> dict[str, Any]:
        """What decides the outcome, as plain data for JSON and checkpoints: where folders lie does not."""
        return decisive(self, _PLACES)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration by path, or by the name of a file in `examples/semidavil/configs`; see `load`."""
    return load(Config, path, CONFIGS, overrides)
