"""Typed configurations from TOML files, checked before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from classbalance_losses import PullLoss
from examples.common.adaptation import FeatureDistanceConfig, HrdaConfig, MicConfig
from examples.common.config import at_least, below_one, decisive, in_unit, load
from examples.common.fourier import check_fourier
from examples.common.recipe import TrainingConfig as RecipeConfig
from examples.common.scenes.config import DataConfig as StreamsConfig

CONFIGS = Path(__file__).parent / "configs"
_PLACES = {"data": ("source", "target", "splits"), "translation": ("styles",)}

ENGINES = ("fda", "adain", "color_jitter", "gaussian_blur", "weather", "cartoon", "translated")
REFERENCED = ("fda", "adain")  # engines that take a style from another image
Place = Literal["source", "pseudo_target", "target"]


@dataclass(frozen=True)
class DataConfig(StreamsConfig):
    """Where images come from; see `examples/common/scenes/config.py`. No target image has a label in training."""

    budget: int = 0
    batch_size: int = 2  # of each stream, as in the paper

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget or not self.use_source:
            raise ValueError(
                f"the source alone is labelled here: data.budget must be 0 and data.use_source true, got "
                f"{self.budget} and {self.use_source}; examples.semidavil trains with target labels"
            )


@dataclass(frozen=True)
class ComponentConfig:
    """What is added to the labelled cross-entropy, and where that is taken.

    All off: source only. Self-training alone: DACS; with the feature distance and rare-class sampling, DAFormer.
    """

    self_training: bool = True
    feature_distance: bool = True
    pull: bool = True
    # Table 7's "CE"; Table 11 without the pull loss
    cross_entropy: Literal["source", "pseudo_target"] = "source"


@dataclass(frozen=True)
class TranslationConfig:
    """How source images become pseudo-target images. See `translation`."""

    engines: tuple[str, ...] = ("fda",)  # of ENGINES; where there are several, each image draws one
    # The source is cropped to this size and restyled there, and cut to data.crop after that, as the target is, whose
    # crop of this size gives the style. None: whole images.
    size: tuple[int, int] | None = None
    before_crop: bool = True  # False: the same crops are restyled when they have their last size
    beta: float = 0.01  # FDA's window, in shares of the shorter side; below a pixel, the mean colours alone
    window: Literal["numpy", "torch"] = "numpy"
    styles: str = ""  # folder of style images, for domain generalisation
    translated: str = ""  # folder of source images that a network has translated: NAME.png or NAME.jpg

    def __post_init__(self) -> None:
        check_fourier(self.beta, self.window)
        if unknown := [name for name in self.engines or ("",) if name not in ENGINES]:
            raise ValueError(
                f"translation.engines must be some of {', '.join(map(repr, ENGINES))}, got {unknown[0]!r}"
            )


@dataclass(frozen=True)
class SelfTrainingConfig:
    """DACS: mixed images with the teacher's labels."""

    weight: float = 1.0
    threshold: float = 0.968  # a pixel is confident above this probability
    confidence: Literal["image", "batch"] = "image"  # whose share of confident pixels weighs the target's
    strength: float = 0.5  # of the mixed images' colours
    ignore_top: int = 0  # rows of the target without a pseudo-label: frames and bonnets of cars
    ignore_bottom: int = 0

    def __post_init__(self) -> None:
        in_unit(self, "threshold", "strength")
        at_least(self, 0, "ignore_top", "ignore_bottom")


@dataclass(frozen=True)
class ReweightingConfig:
    """Section 3.5's class weights, from the teacher's confidence in the target's H x W pixels."""

    of: Literal["pull", "target", "none"] = "pull"  # which loss they weigh: Table 9
    power: float = 0.5  # β of equation 17; 0: equal weights
    momentum: float = 0.0  # of a running mean of the confidences; 0: the batch's, as equation 18 has it
    absent: Literal["carry", "max", "exclude"] = "carry"  # a class without a labelled pixel; see `PullLoss`

    def __post_init__(self) -> None:
        PullLoss(num_classes=2, power=self.power, momentum=self.momentum, absent=self.absent)  # refuses


@dataclass(frozen=True)
class PullConfig:
    """The pull loss, and what the ablations change around it. See `pull.Pull`."""

    weight: float = 0.1  # λ
    objective: Literal["infonce", "mse"] = "infonce"
    temperature: float = 0.2  # τ
    unreliable_fraction: float = 0.5  # α
    queries_per_class: int = 128  # n
    negatives: int = 1024  # m of a query, even
    pair_reduction: Literal["mean", "sum"] = "mean"
    queries: Literal["balanced", "random", "equal"] = "balanced"
    queries_from: Place = "pseudo_target"  # Table 7's q
    keys_from: Place = "source"  # Table 7's k+
    negatives_from: Literal["both", "pooled", "source", "target"] = "both"
    keys: Literal["teacher", "student"] = "teacher"  # whose features prototypes and negatives are

    def __post_init__(self) -> None:
        PullLoss(
            num_classes=2,
            objective=self.objective,
            temperature=self.temperature,
            unreliable_fraction=self.unreliable_fraction,
            queries_per_class=self.queries_per_class,
            negatives=self.negatives,
        )  # refuses what it does not take
        if self.objective == "mse" and self.negatives_from in ("pooled", "target"):
            raise ValueError(
                f'pull.objective = "mse" has no negatives, got pull.negatives_from = {self.negatives_from!r}'
            )

    @property
    def negatives_of_source(self) -> bool:
        """Whether no negative is of the target."""
        return self.objective == "mse" or self.negatives_from == "source"


@dataclass(frozen=True)
class ModelConfig:
    """The network, and its running average."""

    vision: str = "efficientnet-lite0"  # or one of `vision.NAMES`
    decoder: Literal["context", "atrous", "pyramid"] = "context"  # DAFormer's, DeepLab-V2's, a pyramid
    width: int = 128  # of the decoder
    projector: Literal["encoder", "encoder_last", "decoder"] = "encoder"  # whose features; see `model`
    projection: int = 128  # d of the projector's features
    dropout: float = 0.1  # of whole channels, before the classifier
    ema_decay: float = 0.999
    ema_warmup: bool = True  # min(decay, 1 - 1/(step + 1)), as in DACS

    def __post_init__(self) -> None:
        at_least(self, 1, "width", "projection")
        in_unit(self, "ema_decay")
        below_one(self, "dropout")


@dataclass(frozen=True)
class TrainingConfig(RecipeConfig):
    """The recipe: AdamW, whose rates rise for `warmup` steps and then stay, as the paper names no decay."""

    lr: float = 6e-5  # of the encoder
    head_lr: float = 6e-4  # of decoder and projector
    warmup: int = 1500
    decay: Literal["constant", "polynomial"] = "constant"  # "polynomial": under (1 - step/iterations)^power
    power: float = 1.0
    amp: Literal["off", "bfloat16"] = "off"
    evaluate: Literal["student", "teacher"] = "student"
    window: tuple[int, int] | None = None  # of the sliding window; None: whole images
    stride: tuple[int, int] | None = None  # None: two thirds of the window
    feature_metrics: bool = True  # CCD and PDD on the test sets, at the end
    source_images: int = 500  # scored at the end, evenly spread over the source: Table 17, Figure 1. 0: none

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "warmup", "source_images")


@dataclass(frozen=True)
class Config:
    """One run. `mode` "generalization" sees no image of the target in training."""

    mode: Literal["adaptation", "generalization"] = "adaptation"
    data: DataConfig = field(default_factory=DataConfig)
    components: ComponentConfig = field(default_factory=ComponentConfig)
    translation: TranslationConfig = field(default_factory=TranslationConfig)
    self_training: SelfTrainingConfig = field(default_factory=SelfTrainingConfig)
    feature_distance: FeatureDistanceConfig = field(default_factory=FeatureDistanceConfig)
    hrda: HrdaConfig = field(default_factory=HrdaConfig)
    mic: MicConfig = field(default_factory=MicConfig)
    reweighting: ReweightingConfig = field(default_factory=ReweightingConfig)
    pull: PullConfig = field(default_factory=PullConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    note: str = ""  # what published number it belongs to

    def __post_init__(self) -> None:
        _check_crops(self.data.crop, self.translation.size)
        if self.mic.enabled and not self.components.self_training:
            raise ValueError(
                "mic.enabled takes the teacher's labels: it needs components.self_training = true"
            )
        if self.mode == "generalization":
            _check_generalization(self)
        elif self.reweighting.of == "target" and not self.components.self_training:
            raise ValueError(
                'reweighting.of = "target" weighs a loss that is off: components.self_training = false'
            )

    @property
    def restyles(self) -> bool:
        """Whether a step makes pseudo-target images."""
        asked = (self.pull.queries_from, self.pull.keys_from) if self.components.pull else ()
        return "pseudo_target" in (*asked, self.components.cross_entropy)

    @property
    def uses_target(self) -> bool:
        """Whether training reads images of the target."""
        parts = self.components
        referenced = self.restyles and any(name in REFERENCED for name in self.translation.engines)
        return self.mode == "adaptation" and (parts.self_training or parts.pull or referenced)

    def as_dict(self) -> dict[str, Any]:
        """What decides the outcome, as plain data for JSON and checkpoints: where folders lie does not."""
        return decisive(self, _PLACES)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration by path, or by the name of a file in `examples/t2s_da/configs`; see `load`."""
    return load(Config, path, CONFIGS, overrides)


def _check_generalization(config: Config) -> None:
    """Section 4.2: without target images there is no target loss, no re-weighting, and no negative of the target."""
    parts, pull = config.components, config.pull
    wanted = {"components.self_training = false": not parts.self_training}
    if parts.pull:
        wanted['reweighting.of = "none"'] = config.reweighting.of == "none"
        wanted['pull.negatives_from = "source"'] = pull.negatives_of_source
        wanted["pull.queries_from and pull.keys_from without the target"] = "target" not in (
            pull.queries_from,
            pull.keys_from,
        )
    if missing := [name for name, given in wanted.items() if not given]:
        raise ValueError(f'mode = "generalization" has no target image to train on: it needs {missing[0]}')


def _check_crops(crop: tuple[int, int] | None, size: tuple[int, int] | None) -> None:
    if crop is not None and size is not None and (crop[0] > size[0] or crop[1] > size[1]):
        raise ValueError(f"data.crop is cut from translation.size: expected at most {size}, got {crop}")
