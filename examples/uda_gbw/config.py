"""Typed configurations from TOML files, checked before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from examples.common.adaptation import FeatureDistanceConfig, HrdaConfig, MicConfig
from examples.common.config import at_least, below_one, decisive, in_unit, load
from examples.common.recipe import TrainingConfig as RecipeConfig
from examples.common.scenes.config import StreamConfig

CONFIGS = Path(__file__).parent / "configs"
_PLACES = {"data": ("source", "target")}  # where folders lie decides no outcome

MethodName = Literal["source_only", "entropy", "advent", "adaptsegnet", "dacs", "daformer"]
Scheme = Literal["none", "image_frequency", "pixel_frequency", "loss", "curriculum", "gbw"]
Reading = Literal["pixel_mean", "class_logits", "official", "bias", "loss"]


@dataclass(frozen=True)
class ModelConfig:
    """The network. Weights that cannot be had offline are read from a folder or from the model hub."""

    # "efficientnet-lite0" (ImageNet), "mit-b0" to "mit-b5" and "mit-tiny" (random), "mit:PATH-OR-HUB-NAME"
    encoder: str = "efficientnet-lite0"
    decoder: Literal["pyramid", "context"] = "pyramid"
    channels: int = 64  # of the decoder
    dropout: float = 0.1  # of whole channels, before the decoder's last layer

    def __post_init__(self) -> None:
        at_least(self, 1, "channels")
        below_one(self, "dropout")


@dataclass(frozen=True)
class WeightingConfig:
    """How every loss weighs its classes: Table 4b. See `weighting.ClassWeightedLoss`."""

    scheme: Scheme = "none"
    pixel_loss: Literal["ce", "focal"] = "ce"
    gamma: float = 2.0  # of "focal"
    power: float = 1.0  # of "pixel_frequency": 0.5 tempers it
    regularization: float = 1.0  # λ of "gbw" and "loss"
    gradient: Reading = "pixel_mean"  # of "gbw"
    classes: Literal["all", "present"] = "all"  # of "gbw" and "loss": which share the sum of weights
    apply: Literal["pixel", "class"] = "pixel"  # mean over pixels; "class": eq 2, the sum of class means
    confidence: bool = True  # of "gbw" and "loss": eq 12, it scales the gradient too; False as released
    curriculum_start: float = 25.0  # of "curriculum": percent of the classes that are active first
    curriculum_increment: float = 25.0  # percent more after every ...
    curriculum_every: int = 1000  # ... steps

    def __post_init__(self) -> None:
        at_least(self, 0, "gamma", "power")
        at_least(self, 1, "curriculum_every")
        if self.regularization <= 0:
            raise ValueError(f"regularization must be positive, got {self.regularization}")


@dataclass(frozen=True)
class EntropyConfig:
    """Entropy minimisation, direct (entropy) or adversarial (advent)."""

    weight: float = 0.001
    # what has class weights: "terms", -p log p of each class; "labels", pixels, by their most probable class
    weighting: Literal["terms", "labels"] = "terms"
    regularization: float = 0.0  # λ of the terms' weights; 0: weighting's

    def __post_init__(self) -> None:
        at_least(self, 0, "regularization")


@dataclass(frozen=True)
class AdversarialConfig:
    """The discriminators of advent and adaptsegnet."""

    weight: float = 0.001  # of the output level
    feature_level: bool = False  # adaptsegnet's second one, on an auxiliary classifier of coarse features
    feature_weight: float = 0.0002
    auxiliary_weight: float = 0.1  # of the auxiliary classifier's cross-entropy
    channels: int = 64  # of a discriminator's first layer; each of the next three has twice as many
    lr: float = 1e-4

    def __post_init__(self) -> None:
        at_least(self, 1, "channels")


@dataclass(frozen=True)
class SelfTrainingConfig:
    """The teacher and the mixed images of dacs and daformer."""

    threshold: float = 0.968  # the confidence of a target image's labels is the share of pixels above it
    ema_decay: float = 0.999
    ema_warmup: bool = True  # min(decay, 1 - 1/(step + 1))
    strength: float = 0.2  # of the mixed images' change of colours
    ignore_top: int = 0  # rows of the target without a pseudo-label: frames and bonnets of cars
    ignore_bottom: int = 0

    def __post_init__(self) -> None:
        at_least(self, 0, "ignore_top", "ignore_bottom")
        in_unit(self, "threshold", "ema_decay")


@dataclass(frozen=True)
class TrainingConfig(RecipeConfig):
    """The recipe: AdamW, a linear warm-up and a polynomial decay, the decoder's rate a multiple of the encoder's."""

    lr: float = 6e-5
    decoder_lr: float = 10.0  # times lr
    warmup: int = 1500  # steps
    power: float = 1.0
    checkpoint_every: int = 1000
    evaluate: Literal["student", "teacher"] = "student"
    window: tuple[int, int] | None = None  # of the sliding window; None: whole images
    stride: tuple[int, int] | None = None  # None: two thirds of the window

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "warmup")


@dataclass(frozen=True)
class Config:
    """One run."""

    method: MethodName = "source_only"
    data: StreamConfig = field(default_factory=StreamConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    weighting: WeightingConfig = field(default_factory=WeightingConfig)
    entropy: EntropyConfig = field(default_factory=EntropyConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    self_training: SelfTrainingConfig = field(default_factory=SelfTrainingConfig)
    feature_distance: FeatureDistanceConfig = field(default_factory=FeatureDistanceConfig)
    hrda: HrdaConfig = field(default_factory=HrdaConfig)
    mic: MicConfig = field(default_factory=MicConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    note: str = ""  # what published number it belongs to

    def __post_init__(self) -> None:
        teaches = self.method in ("dacs", "daformer")
        for name in ("hrda", "mic"):
            if getattr(self, name).enabled and not teaches:
                raise ValueError(
                    f"{name} needs a teacher: expected method dacs or daformer, got {self.method!r}"
                )
        if self.hrda.enabled and (self.data.crop is None or any(side % 16 for side in self.data.crop)):
            raise ValueError(
                f"hrda needs data.crop with sides that are multiples of 16, got {self.data.crop}"
            )
        if self.training.evaluate == "teacher" and not teaches:
            raise ValueError(f'method {self.method!r} has no teacher: set training.evaluate = "student"')
        of_terms = self.method in ("entropy", "advent") and self.entropy.weighting == "terms"
        if of_terms and self.weighting.scheme == "gbw" and self.weighting.gradient == "official":
            raise ValueError(
                'the released code has no gradient of an entropy: with weighting.gradient = "official" set '
                'entropy.weighting = "labels"'
            )
        rows = self.self_training.ignore_top + self.self_training.ignore_bottom
        if self.data.crop is not None and rows >= self.data.crop[0]:
            raise ValueError(
                f"ignore_top and ignore_bottom leave nothing of {self.data.crop[0]} rows, got {rows}"
            )

    def as_dict(self) -> dict[str, Any]:
        """What decides the outcome, as plain data for JSON and checkpoints: where folders lie does not."""
        return decisive(self, _PLACES)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration by path, or by the name of a file in `examples/uda_gbw/configs`; see `load`."""
    return load(Config, path, CONFIGS, overrides)
