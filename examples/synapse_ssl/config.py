"""Typed configurations from TOML files, checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from examples.common.config import at_least, below_one, decisive, in_unit, load
from examples.synapse_ssl.data.config import DataConfig

CONFIGS = Path(__file__).parent / "configs"

MethodName = Literal["supervised", "ua_mt", "urpc", "cps", "depl", "dhc", "a_and_d"]


@dataclass(frozen=True)
class ModelConfig:
    """The network; methods with two networks have two of the kind."""

    network: Literal["vnet", "basic_unet", "dyn_unet", "diff_vnet"] = "vnet"  # diff_vnet: of A&D alone
    features: tuple[int, ...] = (16, 32, 64, 128, 256, 16)  # vnet has none to choose; basic_unet has six
    dropout: float = 0.5

    def __post_init__(self) -> None:
        below_one(self, "dropout")


@dataclass(frozen=True)
class SupervisedConfig:
    """The loss of the labelled patches; each method says what its published form is, see `methods`."""

    pixel: Literal["CE", "DyCE"] = "CE"
    pixel_options: Mapping[str, Any] = field(default_factory=dict)  # of the loss: omega, hard_fraction
    dice: bool = True  # False: the pixel loss alone
    mining_ramp: float = 0.0  # share of training in which DyCE's hard_fraction falls from 1, see `losses.py`

    def __post_init__(self) -> None:
        in_unit(self, "mining_ramp")


@dataclass(frozen=True)
class UnsupervisedConfig:
    """The weight of a method's other term: weight * exp(-5 (1 - t)^2), t the epoch's share of all."""

    weight: float = 0.1
    ramp: bool = True  # False: the full weight from the start


@dataclass(frozen=True)
class UaMtConfig:
    """Uncertainty-aware mean teacher."""

    ema_decay: float = 0.99
    ema_counter: Literal["epoch", "iteration"] = "epoch"  # grows the decay from 0, see `methods/ua_mt.py`
    passes: int = 8  # T: noisy passes of the teacher that the uncertainty is taken from
    entropy: Literal["ln 2", "ln C"] = "ln 2"  # what the uncertainty is compared with

    def __post_init__(self) -> None:
        at_least(self, 1, "passes")


@dataclass(frozen=True)
class DeplConfig:
    """Debiased pseudo-labels."""

    threshold: float = 0.9
    tau: float = 1.0
    momentum: float = 0.99


@dataclass(frozen=True)
class DhcConfig:
    """The class weights of DHC; A&D's have the same window."""

    momentum: float = 0.99  # of DistDW
    window: int = 50  # steps over which DiffDW averages

    def __post_init__(self) -> None:
        at_least(self, 1, "window")


@dataclass(frozen=True)
class TrainingConfig:
    """The recipe: SGD with Nesterov momentum 0.9, a rate lr * (1 - epoch / epochs)^power."""

    epochs: int = 300
    steps_per_epoch: int = 8  # 16 unlabelled volumes, 2 a step
    lr: float = 0.01
    weight_decay: float = 3e-5
    power: float = 0.9
    amp: Literal["off", "bfloat16", "float16"] = "off"  # of the networks; losses are float32 in any case
    seed: int = 0
    workers: int = 0
    log_every: int = 8
    checkpoint_every: int = 80
    validate_every: int = 10  # epochs; the best on validation is what is tested. 0: never, the last is tested

    def __post_init__(self) -> None:
        at_least(self, 1, "epochs", "steps_per_epoch", "log_every", "checkpoint_every")
        at_least(self, 0, "validate_every", "workers")

    @property
    def iterations(self) -> int:
        """Steps in all."""
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True)
class EvaluationConfig:
    """The sliding window, and whose conventions the metrics follow: see `evaluation.py`."""

    overlap: float | tuple[float, float, float] = 0.5  # of neighbouring windows, one share or one an axis
    published: bool = False

    def __post_init__(self) -> None:
        shares = self.overlap if isinstance(self.overlap, tuple) else (self.overlap,)
        if not all(0 <= share < 1 for share in shares):
            raise ValueError(f"overlap must be in [0, 1), got {self.overlap}")


@dataclass(frozen=True)
class Config:
    """One run."""

    data: DataConfig = field(default_factory=DataConfig)
    method: MethodName = "supervised"
    model: ModelConfig = field(default_factory=ModelConfig)
    supervised: SupervisedConfig = field(default_factory=SupervisedConfig)
    unsupervised: UnsupervisedConfig = field(default_factory=UnsupervisedConfig)
    ua_mt: UaMtConfig = field(default_factory=UaMtConfig)
    depl: DeplConfig = field(default_factory=DeplConfig)
    dhc: DhcConfig = field(default_factory=DhcConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    note: str = ""  # what published number it belongs to, and what in it is not published

    def as_dict(self) -> dict[str, Any]:
        """What decides the outcome, as plain data for JSON and checkpoints: where the folder lies does not."""
        return decisive(self, {"data": ("folder",)})


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration by path, or by the name of a file in `examples/synapse_ssl/configs`; see `load`."""
    return load(Config, path, CONFIGS, overrides)
