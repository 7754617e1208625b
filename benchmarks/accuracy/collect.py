"""From finished runs to one compact, committed file a grid, and the numbers that tables and plots are made of."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.accuracy.data import RARE
from benchmarks.accuracy.grid import Grid
from benchmarks.accuracy.run import is_finished, read_metrics, write_json
from examples.common.training import LOG, TrainingConfig

CPU = {"type": "cpu"}  # of runs made when there was no other device: their files do not name one
_WEIGHT_EVERY = 2  # of the logged class weights, keep every second: enough for a plot


@dataclass(frozen=True)
class Result:
    """One finished run of a grid."""

    label: str
    loss: dict[str, Any]
    seed: int
    scores: dict[str, Any]  # test set -> mean_iou, iou, pixel_accuracy; of one logit also precision, recall
    log: tuple[dict[str, Any], ...]
    device: dict[str, Any]  # type, name; of a GPU also cuda, cudnn, tf32
    quality: dict[str, Any]  # see `quality`; empty of runs made before it was measured


@dataclass(frozen=True)
class GridResults:
    """The finished runs of one grid, as its file holds them."""

    name: str
    title: str
    recipe: dict[str, Any]
    classes: tuple[str, ...]
    shares: tuple[float, ...]  # of the training pixels
    runs: tuple[Result, ...]
    # Of a search, in per cent: label -> rate -> score on held-out images.
    rate_scores: dict[str, dict[str, float]]
    setting_scores: dict[str, dict[str, float]]  # the same by what was tried beside a loss's own keywords

    @property
    def labels(self) -> list[str]:
        """The losses in the grid's order, those with a finished run."""
        return list(dict.fromkeys(run.label for run in self.runs))

    @property
    def tests(self) -> list[str]:
        """The names of the test sets, the main one first."""
        return list(self.runs[0].scores)

    @property
    def is_binary(self) -> bool:
        """Whether one logit tells the second class from the first."""
        return len(self.classes) == 2

    @property
    def score_name(self) -> str:
        """What the main score is called, of which `main_score` is the value."""
        return "IoU" if self.is_binary else "mean Dice" if self.has_dice else "mIoU"

    @property
    def has_dice(self) -> bool:
        """Whether the first class is a background, and Dice of the others the main score."""
        return "mean_dice" in self.runs[0].scores[self.tests[0]]

    @property
    def device(self) -> str:
        """What the runs were carried out on, for a sentence: a CPU, or the GPU's name."""
        devices = [run.device for run in self.runs]
        return " and ".join(dict.fromkeys("a CPU" if d["type"] == "cpu" else d["name"] for d in devices))

    @property
    def tf32(self) -> str:
        """Where a GPU rounded float32 to TF32, for a sentence; empty for a CPU."""
        flags = [run.device["tf32"] for run in self.runs if "tf32" in run.device]
        if not flags:
            return ""
        places = {"cudnn": "convolutions", "matmul": "matrix products"}
        used = [place for key, place in places.items() if any(flag[key] for flag in flags)]
        return f"float32, TF32 in {' and '.join(used)}" if used else "float32 without TF32"

    @property
    def by_frequency(self) -> list[int]:
        """The classes, the most frequent in training first."""
        return sorted(range(len(self.classes)), key=lambda c: -self.shares[c])

    @property
    def rare(self) -> list[int]:
        """The classes with the fewest training pixels, rarest first: five, or all but the most frequent one."""
        of_training = [c for c in reversed(self.by_frequency) if self.shares[c] > 0]
        return of_training[: min(RARE, len(self.classes) - 1)]

    def of(self, label: str) -> Iterator[Result]:
        """The runs of one loss."""
        return (run for run in self.runs if run.label == label)

    def seeds_of(self, label: str) -> list[int]:
        """The seeds that one loss was run with."""
        return sorted(run.seed for run in self.of(label))

    def columns(self, label: str, test: str) -> dict[str, list[float]]:
        """The scores that a table shows, by name, each of every seed, in per cent."""
        if not self.is_binary:
            dice = [100 * run.scores[test]["mean_dice"] for run in self.of(label) if self.has_dice]
            iou = {"mIoU": self.mean_iou(label, test), f"rarest {len(self.rare)}": self.rare_iou(label, test)}
            return ({"mean Dice": dice} if dice else {}) | iou
        scores = [positive_scores(run.scores[test]) for run in self.of(label)]
        return {name: [one[name] for one in scores] for name in scores[0]}

    def mean_iou(self, label: str, test: str) -> list[float]:
        """The mean IoU of every seed, in per cent."""
        return [100 * run.scores[test]["mean_iou"] for run in self.of(label)]

    def rare_iou(self, label: str, test: str) -> list[float]:
        """The mean IoU of the five rarest classes of every seed, in per cent."""
        return [rare_mean(run.scores[test]["iou"], self.rare) for run in self.of(label)]

    def class_iou(self, label: str, test: str) -> list[float]:
        """Every class's IoU, the mean over seeds, in per cent; NaN where it never occurs."""
        columns = zip(*(run.scores[test]["iou"] for run in self.of(label)), strict=True)
        return [_mean_present(column) for column in columns]


def positive_scores(entry: dict[str, Any]) -> dict[str, float]:
    """The second class's scores in per cent, NaN where there is nothing to count: precision without a prediction."""
    iou, precision, recall = (
        math.nan if value is None else 100 * value
        for value in (entry[name][1] for name in ("iou", "precision", "recall"))
    )
    return {"IoU": iou, "F1": 200 * iou / (100 + iou), "precision": precision, "recall": recall}


def rare_mean(iou: list[float | None], rare: list[int]) -> float:
    """The mean IoU of some classes in per cent, those that do not occur left out."""
    return _mean_present([iou[c] for c in rare])


def mean_and_std(values: list[float]) -> tuple[float, float]:
    """The mean and the standard deviation of a sample, 0 for a single value."""
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def collect(grid: Grid, runs: Path, out: Path) -> Path | None:
    """Write `OUT/GRID.json` from the finished runs of a grid; None where there is none yet.

    A run that the file has already stays in it where the run's folder is gone, so that results gather over machines.
    """
    path = out / f"{grid.name}.json"
    former = json.loads(path.read_text()) if path.is_file() else {"runs": []}
    known = {run["run"]: run for run in former["runs"]}
    entries: list[dict[str, Any]] = []
    metrics: dict[str, Any] = former
    for label, config in grid.runs():
        if not is_finished(config, runs):
            if config.key in known:
                entries.append(known[config.key])
            continue
        folder = runs / config.folder_name
        metrics = read_metrics(folder)
        entries.append(
            {
                "label": label,
                "loss": config.loss,
                "seed": config.seed,
                "run": config.key,
                "scores": _rounded(metrics["scores"]),
                "quality": _rounded(metrics.get("quality", {}), digits=1),
                "commit": metrics["commit"],
                "versions": metrics["versions"],
                "device": metrics.get("device", CPU),
                "log": _rounded(_thinned(folder / LOG)),
            }
        )
    if not entries:
        return None
    training = asdict(TrainingConfig(**grid.training))
    del training["seed"]
    recipe = {"data": grid.data, "model": grid.model, "training": training}
    content = {
        "grid": grid.name,
        "title": grid.title,
        "recipe": recipe,
        "classes": metrics["classes"],
        "train_pixel_share": _rounded(metrics["train_pixel_share"], digits=7),
        "rate_scores": _rounded(dict(grid.rate_scores)),
        **({"setting_scores": _rounded(dict(grid.setting_scores))} if grid.setting_scores else {}),
        "runs": entries,
    }
    write_json(path, content)
    return path


def read_results(path: Path) -> GridResults:
    """Read what `collect` wrote."""
    content = json.loads(path.read_text())
    return GridResults(
        name=content["grid"],
        title=content["title"],
        recipe=content["recipe"],
        classes=tuple(content["classes"]),
        shares=tuple(content["train_pixel_share"]),
        runs=tuple(
            Result(
                run["label"],
                run["loss"],
                run["seed"],
                run["scores"],
                tuple(run["log"]),
                run.get("device", CPU),
                run.get("quality", {}),
            )
            for run in content["runs"]
        ),
        rate_scores=content.get("rate_scores", {}),
        setting_scores=content.get("setting_scores", {}),
    )


def known_scores(grid: Grid, out: Path) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """The scores of the searches, of rates and of settings, in the grid's file in `OUT`, or its origin's.

    None without a file.
    """
    known: tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]] = ({}, {})
    for name in filter(None, (grid.origin, grid.name)):
        path = out / f"{name}.json"
        if path.is_file():
            results = read_results(path)
            known = known[0] | results.rate_scores, results.setting_scores
    return known


def _thinned(path: Path) -> list[dict[str, Any]]:
    """The log without what no table or plot uses."""
    kept = []
    for number, line in enumerate(path.read_text().splitlines()):
        entry = json.loads(line)
        if number % _WEIGHT_EVERY and "mean_iou" not in entry:
            continue
        entry.pop("lr")
        kept.append(entry)
    return kept


def _rounded(value: Any, digits: int = 5) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item, digits) for item in value]
    return round(value, digits) if isinstance(value, float) else value


def _mean_present(values: Any) -> float:
    present = [value for value in values if value is not None]
    return 100 * mean(present) if present else math.nan
