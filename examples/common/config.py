"""Typed configurations from TOML files, checked before anything is read: dataclasses, nested."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


Config = TypeVar("Config")


def load(kind: type[Config], path: str | Path, folder: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration by path, or by its name in a folder.

    A file may build on another one of its folder: `base = "NAME"`.

    Args:
        kind: the dataclass.
        path: of the file, or the name.
        folder: of the named ones.
        overrides: `KEY=VALUE` with a dotted key and a TOML value: `training.seed=1`, `loss="CE"`.

    Raises:
        FileNotFoundError: no such file; the message lists those of its folder.
        ValueError: not TOML, an unknown key, or a value of the wrong type or out of range.
    """
    file = Path(path) if Path(path).suffix else folder / path
    config: Config = build(kind, load_toml(file, overrides), str(path))
    return config


def load_toml(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a TOML file, and those that it builds on: `base = "NAME"` is a file of the same folder.

    Args:
        path: the file; without a suffix, `.toml` is added.
        overrides: `KEY=VALUE` with a dotted key and a TOML value: `training.seed=1`, `loss="CE"`. Tables named
            `*_options` are replaced as a whole, others are merged.

    Raises:
        FileNotFoundError: no such file; the message lists those of its folder.
        ValueError: not TOML.
    """
    content = _read(path if path.suffix else path.with_suffix(".toml"))
    for override in overrides:
        content = _merge(content, _override(override))
    return content


def read_toml(path: Path) -> dict[str, Any]:
    """The content of one TOML file.

    Raises:
        ValueError: not TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is no TOML file: {error}") from error


def read_named(name: str, folder: Path, kind: str) -> tuple[Path, dict[str, Any]]:
    """A TOML file by path, or by its name in a folder: the path, and the content.

    Raises:
        FileNotFoundError: no such file; the message says which `kind` of file, and lists those of the folder.
        ValueError: not TOML.
    """
    path = Path(name) if name.endswith(".toml") else folder / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.toml")))
        raise FileNotFoundError(f"no {kind} {path}; those here are {known}")
    return path, read_toml(path)


def build(kind: type[Any], content: Mapping[str, Any], where: str) -> Any:
    """A dataclass from plain data; every key must be a field, every value of its type.

    Args:
        kind: the dataclass; a field whose type is one too is a section of the file.
        content: plain data, as TOML gives it.
        where: names the place in messages.

    Raises:
        ValueError: an unknown key, or a value of the wrong type or out of range.
    """
    known = [f.name for f in fields(kind)]
    if unknown := sorted(set(content) - set(known)):
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; known here are {', '.join(known)}")
    types = get_type_hints(kind)
    values = {}
    for name, value in content.items():
        section = types[name] if is_dataclass(types[name]) else None
        if section is not None and not isinstance(value, Mapping):
            raise ValueError(f"{where}: [{name}] must be a table, got {value!r}")
        place = f"{where}, {name}"
        values[name] = build(section, value, place) if section else _checked(types[name], value, place)
    return kind(**values)


def run_folder(runs: Path, name: str, content: Mapping[str, Any]) -> Path:
    """The folder of a run with this configuration: readable first, unique last. The name may be that of its file."""
    text = json.dumps(content, sort_keys=True)
    return runs / f"{Path(name).stem}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def at_least(config: Any, least: int, *names: str) -> None:
    """Raise ValueError where a field is smaller."""
    for name in names:
        if getattr(config, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(config, name)}")


def in_unit(config: Any, *names: str) -> None:
    """Raise ValueError where a field is not in [0, 1]."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {getattr(config, name)}")


def below_one(config: Any, name: str) -> None:
    """Raise ValueError where a field is not in [0, 1)."""
    if not 0 <= getattr(config, name) < 1:
        raise ValueError(f"{name} must be in [0, 1), got {getattr(config, name)}")


def decisive(config: Any, places: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What decides the outcome of a run, as plain data for JSON and checkpoints: where folders lie does not.

    Args:
        config: a dataclass with sections.
        places: the keys of each section that say where folders lie.
    """
    content: dict[str, Any] = plain(asdict(config))
    for section, keys in places.items():
        for key in keys:
            del content[section][key]
    return content


def plain(value: Any) -> Any:
    """Tuples as lists, at any depth: what JSON would give back."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _override(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(
            f"{text!r} must be KEY=VALUE with a TOML value, as training.seed=1: {error}"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.toml")))
        raise FileNotFoundError(f"no configuration {path}; those there are {known or 'none'}")
    content = read_toml(path)
    base = content.pop("base", None)
    return content if base is None else _merge(_read(path.parent / f"{base}.toml"), content)


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        # Options of another loss mean nothing to this one: they are replaced as a whole.
        whole = key.endswith("_options") or not (isinstance(below, Mapping) and isinstance(value, Mapping))
        merged[key] = value if whole else _merge(below, value)  # type: ignore[arg-type]
    return merged


def _checked(expected: Any, value: Any, where: str) -> Any:
    """The value, with lists turned into tuples; ValueError where it does not fit its field's type."""
    if get_origin(expected) is Literal:
        choices = get_args(expected)
        fits, wanted = value in choices, f"one of {', '.join(map(repr, choices))}"
    elif expected == tuple[str, ...]:
        fits, wanted = _is_list(value, str), "a list of strings"
    elif expected == (tuple[int, int] | None):
        fits, wanted = _is_list(value, int) and len(value) in (0, 2), "[height, width], or [] for none"
    elif expected == (tuple[int, int, int] | None):
        fits, wanted = _is_list(value, int) and len(value) in (0, 3), "three integers, or [] for none"
    elif expected == tuple[int, int, int]:
        fits, wanted = _is_list(value, int) and len(value) == 3, "three integers"
    elif expected == (float | tuple[float, float, float]):
        value = [float(item) for item in value] if _is_list(value, int, float) else value
        value = float(value) if type(value) is int else value
        fits, wanted = (
            type(value) is float or (_is_list(value, float) and len(value) == 3),
            "one or three numbers",
        )
    elif expected == tuple[int, ...]:
        fits, wanted = _is_list(value, int) and bool(value), "a list of integers"
    elif expected in (bool, int, float, str):
        value = float(value) if expected is float and type(value) is int else value
        fits, wanted = type(value) is expected, expected.__name__
    else:
        fits, wanted = isinstance(value, Mapping), "a table"
    if not fits:
        raise ValueError(f"{where} must be {wanted}, got {value!r}")
    return (tuple(value) or None) if isinstance(value, list) else value


def _is_list(value: Any, *kinds: type[Any]) -> bool:
    return isinstance(value, list) and all(type(item) in kinds for item in value)
