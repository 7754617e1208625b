"""From a grid's finished runs to plain data, and the numbers that its tables and plots are made of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from examples.common.config import run_folder
from examples.semidavil.grid import Grid
from examples.semidavil.train import METRICS

RARE = 5
Run = Mapping[str, Any]


def collect(grid: Grid, runs: Path) -> dict[str, Any]:
    """The finished runs: {"rows": {label: {budget: [run]}}} and what the grid says of itself, as plain data.

    A run has its seed, its recipe and everything in its `metrics.json`: `scores` with the IoU of each class, and, for
    runs that recorded them, commit, versions, seconds and device.
    """
    found: dict[str, Any] = {
        "title": grid.title,
        "paper": grid.paper,
        "paper_rows": dict(grid.paper_rows),
        "compare": list(grid.compare),
        "rows": {},
    }
    for label, overrides in grid.rows:
        found["rows"][label] = {}
        for budget in grid.budgets:
            cell = found["rows"][label][str(budget)] = []
            for seed in grid.seeds:
                config = grid.run(overrides, budget, seed)
                path = run_folder(runs, grid.config, config.as_dict()) / METRICS
                if path.is_file():
                    recipe = {
                        "steps": config.training.iterations,
                        "batch_size": config.data.batch_size,
                        "accumulation": config.training.accumulation,
                    }
                    cell.append({"seed": seed, "recipe": recipe, **json.loads(path.read_text())})
    return found


def all_runs(results: Mapping[str, Any]) -> list[Run]:
    """Every run once: a row without labels has one run for all budgets."""
    seen: dict[tuple[str, int, int], Run] = {}
    for label, row in results["rows"].items():
        for runs in row.values():
            for run in runs:
                seen[label, run["labelled"], run["seed"]] = run
    return list(seen.values())


def tests(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The test sets, and the main mean IoU of each: (`val`, `mIoU19`)."""
    scores = all_runs(results)[0]["scores"]
    return [(name, next(iter(entry["mean_iou"]))) for name, entry in scores.items()]


def cells(results: Mapping[str, Any]) -> Iterator[tuple[str, str, Sequence[Run]]]:
    """Row, budget and runs of every cell."""
    for label, row in results["rows"].items():
        for budget, runs in row.items():
            yield label, budget, runs


def shares(results: Mapping[str, Any], test: str) -> list[float]:
    """Each class's share of a test set's labelled pixels."""
    pixels = all_runs(results)[0]["scores"][test]["pixels"]
    return [count / sum(pixels) for count in pixels]


def by_rarity(results: Mapping[str, Any], test: str) -> list[int]:
    """The classes that a test set has, the rarest first."""
    share = shares(results, test)
    return sorted((c for c, value in enumerate(share) if value), key=lambda c: share[c])


def rare_mean(entry: Mapping[str, Any]) -> float:
    """The mean IoU of the classes with the fewest test pixels, of those that occur."""
    present = [c for c, pixels in enumerate(entry["pixels"]) if pixels]
    return mean(entry["iou"][c] for c in sorted(present, key=lambda c: entry["pixels"][c])[:RARE])
