"""Typed configurations from TOML files, checked before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from classbalance_losses import PullLoss
from examples.common.config import at_least, load, plain
from examples.common.fourier import check_fourier
from examples.common.scenes.config import DataConfig as StreamsConfig

CONFIGS = Path(__file__).parent / "configs"
_PLACES = {"data": ("source", "target", "splits")}


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
    """What is added to the source's cross-entropy. Both off: source only. Self-training alone: DACS."""

    self_training: bool = True
    pull: bool = True


@dataclass(frozen=True)
class TranslationConfig:
    """How source images become pseudo-target images."""

    engine: Literal["fda", "photometric", "none"] = "fda"  # "none": the source's own images
    beta: float = (
        0.01  # FDA's window, in shares of the shorter side; at less than one pixel, the mean colours alone
    )
    window: Literal["numpy", "torch"] = "numpy"
    strength: float = 0.5  # of "photometric"

    def __post_init__(self) -> None:
        check_fourier(self.beta, self.window)
        _in_unit("translation.strength", self.strength)


@dataclass(frozen=True)
class SelfTrainingConfig:
    """DACS: mixed images with the teacher's labels."""

    weight: float = 1.0
    threshold: float = 0.968  # a pixel is confident above this probability
    confidence: Literal["image", "batch"] = (
        "image"  # whose share of confident pixels weighs the target's pixels
    )
    strength: float = 0.5  # of the mixed images' colours

    def __post_init__(self) -> None:
        _in_unit("self_training.threshold", self.threshold)
        _in_unit("self_training.strength", self.strength)


@dataclass(frozen=True)
class PullConfig:
    """The pull loss: `classbalance_losses.PullLoss`'s keywords, and what the ablations change around it."""

    weight: float = 0.1  # λ
    objective: Literal["infonce", "mse"] = "infonce"
    temperature: float = 0.2  # τ
    power: float = 0.5  # β of the re-weighting; 0: equal weights
    unreliable_fraction: float = 0.5  # α
    queries_per_class: int = 128  # n
    negatives: int = 1024  # m of a query, even
    pair_reduction: Literal["mean", "sum"] = "mean"
    momentum: float = 0.99
    absent: Literal["carry", "max", "exclude"] = "carry"
    queries: Literal["balanced", "random", "equal"] = "balanced"  # see `pull.Pull`
    negatives_from: Literal["both", "pooled", "source", "target"] = "both"
    keys: Literal["teacher", "student"] = "teacher"  # whose features prototypes and negatives are

    def __post_init__(self) -> None:
        PullLoss(num_classes=2, **self.keywords())  # refuses what it does not take
        if self.objective == "mse" and self.negatives_from != "both":
            raise ValueError(
                f'pull.objective = "mse" has no negatives, got pull.negatives_from = {self.negatives_from!r}'
            )

    @property
    def composed(self) -> bool:
        """Whether the negatives are drawn in a way that `PullLoss` itself does not know."""
        return self.negatives_from in ("pooled", "target")

    def keywords(self) -> dict[str, Any]:
        """Those of `PullLoss`.

        Without unreliable pixels the target's half of the negatives is empty: 2m give m of the source. Where the
        negatives are composed, `PullLoss` keeps the class weights alone, which with "mse" takes the least.
        """
        source_alone = self.negatives_from == "source"
        return {
            "objective": "mse" if self.composed else self.objective,
            "temperature": self.temperature,
            "power": self.power,
            "unreliable_fraction": 0.0 if source_alone else self.unreliable_fraction,
            "queries_per_class": self.queries_per_class,
            "negatives": 2 * self.negatives if source_alone else self.negatives,
            "pair_reduction": self.pair_reduction,
            "momentum": self.momentum,
            "absent": self.absent,
        }


@dataclass(frozen=True)
class ModelConfig:
    """The network, and its running average."""

    vision: str = "efficientnet-lite0"  # or one of `vision.NAMES`
    width: int = 128  # of the decoder
    projection: int = 128  # D of the projector's features
    dropout: float = 0.1  # of whole channels, before the decoder's last layer
    ema_decay: float = 0.999
    ema_warmup: bool = True  # min(decay, 1 - 1/(step + 1)), as in DACS

    def __post_init__(self) -> None:
        at_least(self, 1, "width", "projection")
        _in_unit("model.ema_decay", self.ema_decay)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout must be in [0, 1), got {self.dropout}")


@dataclass(frozen=True)
class TrainingConfig:
    """The recipe: AdamW, a linear warm-up, then a polynomial to 0."""

    iterations: int = 40_000
    lr: float = 6e-5  # of the encoder
    head_lr: float = 6e-4  # of decoder and projector
    weight_decay: float = 0.01
    warmup: int = 1500
    power: float = 1.0
    amp: Literal["off", "bfloat16"] = "off"
    seed: int = 0
    workers: int = 0
    log_every: int = 50
    eval_every: int = 0  # 0: at the end alone
    checkpoint_every: int = 500
    evaluate: Literal["student", "teacher"] = "student"
    window: tuple[int, int] | None = None  # of the sliding window; None: whole images
    stride: tuple[int, int] | None = None  # None: two thirds of the window
    feature_metrics: bool = True  # CCD and PDD on the test sets, at the end

    def __post_init__(self) -> None:
        at_least(self, 1, "iterations", "log_every", "checkpoint_every")
        at_least(self, 0, "eval_every", "workers", "warmup")


@dataclass(frozen=True)
class Config:
    """One run. `mode` "generalization" sees no image of the target in training."""

    mode: Literal["adaptation", "generalization"] = "adaptation"
    data: DataConfig = field(default_factory=DataConfig)
    components: ComponentConfig = field(default_factory=ComponentConfig)
    translation: TranslationConfig = field(default_factory=TranslationConfig)
    self_training: SelfTrainingConfig = field(default_factory=SelfTrainingConfig)
    pull: PullConfig = field(default_factory=PullConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    note: str = ""  # what published number it belongs to

    def __post_init__(self) -> None:
        if self.mode == "adaptation":
            return
        if self.components.self_training:
            raise ValueError(
                'mode = "generalization" has no target image to train on: set components.self_training = false'
            )
        if self.components.pull and self.translation.engine == "fda":
            raise ValueError(
                'mode = "generalization" has no target image to take a style from: set translation.engine = '
                '"photometric"'
            )

    @property
    def uses_target(self) -> bool:
        """Whether training reads images of the target."""
        parts = self.components
        return self.mode == "adaptation" and (parts.self_training or parts.pull)

    def as_dict(self) -> dict[str, Any]:
        """What decides the outcome, as plain data for JSON and checkpoints: where folders lie does not."""
        content: dict[str, Any] = plain(asdict(self))
        for section, keys in _PLACES.items():
            for key in keys:
                del content[section][key]
        return content


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration by path, or by the name of a file in `examples/t2s_da/configs`; see `load`."""
    return load(Config, path, CONFIGS, overrides)


def _in_unit(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")
