"""A grid: one recipe, several losses, several seeds, from a TOML file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from examples.common.config import read_named
from examples.common.models import resolve_encoder
from examples.common.training import TrainingConfig

GRIDS = Path(__file__).parent / "grids"


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's outcome; runs with equal configurations are one run, whatever the grid."""

    data: dict[str, Any]
    model: dict[str, Any]
    training: dict[str, Any]
    loss: dict[str, Any]
    seed: int
    device: str = "cpu"

    @property
    def key(self) -> str:
        """A short hash of the configuration."""
        text = json.dumps(self.as_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def folder_name(self) -> str:
        """The run's folder: readable first, unique last."""
        steps = self.training["iterations"]
        return f"{self.data['name']}-{self.loss['name']}-{steps}-seed{self.seed}-{self.key}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON. The device is there where it is not the CPU: runs had none when there was no other."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.device == "cpu":
            del content["device"]
        return content


@dataclass(frozen=True)
class Search:
    """How each loss's learning rate is chosen: see `benchmarks.accuracy.search`."""

    max_lr: tuple[float, ...]
    seed: int
    held_out: int  # one training image of so many is kept back, and scored
    iterations: int  # of its runs


@dataclass(frozen=True)
class Grid:
    """A named set of runs; `labels[i]` is what tables call the loss of `losses[i]`.

    With a search, `rate_scores` has each label's score on held-out images by the rate; the best rate is its own.
    """

    name: str
    title: str
    data: dict[str, Any]
    model: dict[str, Any]
    training: dict[str, Any]
    losses: tuple[dict[str, Any], ...]
    labels: tuple[str, ...]
    seeds: tuple[int, ...]
    device: str = "cpu"
    search: Search | None = None
    rate_scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    # Of some labels, keywords that are tried beside the loss's own, and the score of each by what files call it.
    tune: Mapping[str, Sequence[dict[str, Any]]] = field(default_factory=dict)
    setting_scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    origin: str | None = None  # the grid that its losses' search is of

    def runs(self) -> list[tuple[str, RunConfig]]:
        """Every run with its label: all losses of the first seed, then of the next."""
        return [
            (label, RunConfig(self.data, self.model, self._training(label), loss, seed, self.device))
            for seed in self.seeds
            for label, loss in zip(self.labels, self.losses, strict=True)
        ]

    def _training(self, label: str) -> dict[str, Any]:
        scores = self.rate_scores.get(label)
        return self.training | ({"max_lr": float(best_of(scores))} if scores else {})


def best_of(scores: Mapping[str, float]) -> str:
    """What has the highest score."""
    return max(scores, key=scores.__getitem__)


def load_grid(path: str | Path, device: str = "cpu") -> Grid:
    """Read a grid by path, or by the name of a file in `benchmarks/accuracy/grids`, for runs on a device.

    Raises:
        FileNotFoundError: no such grid; the message lists those there are.
        ValueError: a missing or unknown key.
    """
    path, content = read_named(str(path), GRIDS, "grid")
    try:
        has_own_search = "search" in content
        content = _with_origin(content)
        labels = tuple(entry["label"] for entry in content["loss"])
        losses = tuple(
            {"name": entry["name"], "kwargs": entry.get("kwargs", {})} for entry in content["loss"]
        )
        grid = Grid(
            name=path.stem,
            title=content["title"],
            data=content["data"],
            # What "auto" stands for differs between machines, and with it the outcome.
            model=content["model"] | {"encoder": resolve_encoder(content["model"]["encoder"])},
            training=content["training"],
            losses=losses,
            labels=labels,
            seeds=tuple(content["seeds"]),
            device=device,
            search=_search(content),
            tune=content.get("tune", {}),
            origin=None if has_own_search else content.get("losses_of", {}).get("grid"),
        )
    except KeyError as error:
        raise ValueError(f"{path} lacks the key {error}") from error
    recipe = {field.name for field in fields(TrainingConfig)} - {"seed"}
    if unknown := set(grid.training) - recipe:
        raise ValueError(f"{path}: [training] does not know {sorted(unknown)}; it knows {sorted(recipe)}")
    if len(set(labels)) < len(labels):
        raise ValueError(f"{path}: two losses have the same label")
    if unknown := set(grid.tune) - set(labels):
        raise ValueError(f"{path}: [tune] names {sorted(unknown)}, which are no labels of its losses")
    return grid


def _with_origin(content: dict[str, Any]) -> dict[str, Any]:
    """A grid's content, with losses of another one before its own, and its search where it has none.

    `losses_of = { grid = NAME, labels = [...] }`; all of them without labels.
    """
    if "losses_of" not in content:
        return content
    _, other = read_named(content["losses_of"]["grid"], GRIDS, "grid")
    by_label = {entry["label"]: entry for entry in other["loss"]}
    losses = [by_label[label] for label in content["losses_of"].get("labels", by_label)]
    search = {"iterations": other["training"]["iterations"]} | other["search"]
    return {"search": search} | content | {"loss": losses + content.get("loss", [])}


def _search(content: Mapping[str, Any]) -> Search | None:
    if "search" not in content:
        return None
    search = content["search"]
    iterations = search.get("iterations", content["training"]["iterations"])
    return Search(tuple(search["max_lr"]), search["seed"], search["held_out"], iterations)
