"""Typed configurations from TOML files, checked before anything is read."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIGS = Path(__file__).parent / "configs"
_PLACES = {"data": ("source", "target"), "model": ("caption_file",)}

Kind = Literal["gta5-cityscapes", "synthia-cityscapes", "streets-camvid"]
LossName = Literal["CE", "WCE", "DCE", "FL", "DFL", "DyCE"]
Guidance = Literal["paper", "code", "cross_attention", "correlation"]
Captions = Literal["domain", "predicted", "file"]


@dataclass(frozen=True)
class DataConfig:
    """Where images come from. Sizes are (height, width)."""

    kind: Kind = "streets-camvid"
    source: str = ""  # folder of GTA5 or SYNTHIA; streets need none
    target: str = ""  # folder of Cityscapes, or one in CamVid's layout
    budget: int = 100  # labelled target images
    splits: str = ""  # folder of the label lists; "" keeps them beside the runs
    split_seed: int = 42
    source_size: tuple[int, int] | None = None
    target_size: tuple[int, int] | None = None
    test_size: tuple[int, int] | None = None  # None: score at the files' size
    crop: tuple[int, int] | None = None  # None: whole images
    batch_size: int = 4  # of each stream
    use_source: bool = True
    rare_class_sampling: bool = False  # of the source
    rare_class_temperature: float = 0.01
    rare_class_min_pixels: int = 1
    streets: int = 300  # images of the source, streets-camvid alone
    train_split: str = "train_alt"
    test_splits: tuple[str, ...] = ("val_alt",)

    def __post_init__(self) -> None:
        _at_least(self, 1, "batch_size", "streets", "rare_class_min_pixels")
        _at_least(self, 0, "budget")


@dataclass(frozen=True)
class ComponentConfig:
    """The parts that Table 3 switches off."""

    consistency: bool = True  # CT: consistency training
    dyce: bool = True  # DyCE: off is plain cross-entropy in place of `loss`
    pretraining: bool = True  # VLP: off is `model.vision_without_vlp`
    guidance: bool = True  # DLG: off is a decoder that sees the image alone


@dataclass(frozen=True)
class ModelConfig:
    """The networks."""

    vision: str = "efficientnet-lite0"  # or "clip:PATH-OR-HUB-NAME", "clip-tiny"
    vision_without_vlp: str = "efficientnet-lite0-random"
    train_vision: bool = False
    text: str = "minilm"  # or "clip:PATH-OR-HUB-NAME", "clip-tiny"
    captions: Captions = "domain"
    caption_file: str = ""  # for captions = "file": written by `python -m examples.semidavil.caption`
    scene: str = "a street scene"  # how composed captions begin
    guidance: Guidance = "paper"
    guidance_channels: int = 128  # c of equation 2
    decoder_channels: int = 128
    max_tokens: int = 48  # n_L of equation 3; longer captions are cut

    def __post_init__(self) -> None:
        _at_least(self, 1, "guidance_channels", "decoder_channels", "max_tokens")


@dataclass(frozen=True)
class ConsistencyConfig:
    """Equation 4. The defaults are the released code's reading, see `losses.ConsistencyLoss`."""

    weight: float = 1.0
    threshold: float = 0.95
    confidence: Literal["teacher", "student"] = "teacher"
    normalize: Literal["confident", "pixels", "images"] = "confident"
    ema_decay: float = 0.999
    ema_warmup: bool = (
        False  # min(decay, 1 - 1/(step + 1)): for schedules that are short beside 1 / (1 - decay)
    )
    strength: float = 0.5  # of the strong view's colours


@dataclass(frozen=True)
class TrainingConfig:
    """The recipe: AdamW, as the released code (the paper names a momentum of 0.9, which AdamW has no use for)."""

    iterations: int = 40_000
    lr: float = 1e-4
    weight_decay: float = 2e-4
    schedule: Literal["poly", "constant", "one_cycle"] = "poly"
    power: float = 0.9  # of "poly"
    amp: Literal["off", "bfloat16", "float16"] = "off"
    seed: int = 0
    workers: int = 0
    log_every: int = 50
    eval_every: int = 0  # 0: at the end alone
    checkpoint_every: int = 500
    evaluate: Literal["student", "teacher"] = "student"
    window: tuple[int, int] | None = None  # of the sliding window; None: whole images
    stride: tuple[int, int] | None = None  # None: two thirds of the window

    def __post_init__(self) -> None:
        _at_least(self, 1, "iterations", "log_every", "checkpoint_every")
        _at_least(self, 0, "eval_every", "workers")


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

    def as_dict(self) -> dict[str, Any]:
        """What decides the outcome, as plain data for JSON and checkpoints: where folders lie does not."""
        content: dict[str, Any] = _plain(asdict(self))
        for section, keys in _PLACES.items():
            for key in keys:
                del content[section][key]
        return content


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration by path, or by the name of a file in `examples/semidavil/configs`.

    A file may build on another one of its folder: `base = "gta5"`. `overrides` are `KEY=VALUE` with a dotted key and a
    TOML value: `training.seed=1`, `loss="CE"`.

    Raises:
        FileNotFoundError: no such file; the message lists those there are.
        ValueError: an unknown key, or a value of the wrong type or out of range.
    """
    content = _read(Path(path))
    for override in overrides:
        content = _merge(content, _override(override))
    return _build(Config, content, str(path))


def _override(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(
            f"{text!r} must be KEY=VALUE with a TOML value, as training.seed=1: {error}"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    if not path.suffix:
        path = CONFIGS / f"{path}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.toml")))
        raise FileNotFoundError(f"no configuration {path}; those here are {known}")
    try:
        content = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is no TOML file: {error}") from error
    base = content.pop("base", None)
    return content if base is None else _merge(_read(path.parent / f"{base}.toml"), content)


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping) and key != "loss_options"
        merged[key] = _merge(below, value) if both else value  # type: ignore[arg-type]
    return merged


_SECTIONS = {
    "data": DataConfig,
    "components": ComponentConfig,
    "model": ModelConfig,
    "consistency": ConsistencyConfig,
    "training": TrainingConfig,
}


def _build(kind: type[Any], content: Mapping[str, Any], where: str) -> Any:
    """A dataclass from plain data; every key must be a field, every value of its type."""
    known = {f.name: f for f in fields(kind)}
    if unknown := sorted(set(content) - set(known)):
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; known here are {', '.join(known)}")
    types = get_type_hints(kind)
    values = {}
    for name, value in content.items():
        section = _SECTIONS.get(name) if kind is Config else None
        if section is not None and not isinstance(value, Mapping):
            raise ValueError(f"{where}: [{name}] must be a table, got {value!r}")
        place = f"{where}, {name}"
        values[name] = _build(section, value, place) if section else _checked(types[name], value, place)
    return kind(**values)


def _checked(expected: Any, value: Any, where: str) -> Any:
    """The value, with lists turned into tuples; ValueError where it does not fit its field's type."""
    if get_origin(expected) is Literal:
        choices = get_args(expected)
        fits, wanted = value in choices, f"one of {', '.join(map(repr, choices))}"
    elif expected == tuple[str, ...]:
        fits, wanted = _is_list(value, str), "a list of strings"
    elif expected == (tuple[int, int] | None):
        fits, wanted = _is_list(value, int) and len(value) in (0, 2), "[height, width], or [] for none"
    elif expected in (bool, int, float, str):
        value = float(value) if expected is float and type(value) is int else value
        fits, wanted = type(value) is expected, expected.__name__
    else:
        fits, wanted = isinstance(value, Mapping), "a table"
    if not fits:
        raise ValueError(f"{where} must be {wanted}, got {value!r}")
    return (tuple(value) or None) if isinstance(value, list) else value


def _is_list(value: Any, kind: type[Any]) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)


def _at_least(config: Any, least: int, *names: str) -> None:
    for name in names:
        if getattr(config, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(config, name)}")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
