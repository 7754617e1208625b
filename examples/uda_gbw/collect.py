"""From a grid's finished runs to plain data, and the numbers that its tables and plots are made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from examples.common.config import run_folder
from examples.common.outcome import finished_run
from examples.uda_gbw.grid import Grid

Run = Mapping[str, Any]


def collect(grid: Grid, runs: Path) -> dict[str, Any]:
    """The finished runs, {"rows": {row: {variant: [run]}}}, and what the grid says of itself, as plain data.

    A run has its folder's name, its seed, its recipe and everything in its `metrics.json`: `scores` with each class's
    IoU, recall and confusions, `class_weights` of each loss over time, commit, versions, seconds and device.
    """
    found: dict[str, Any] = {
        "title": grid.title,
        "config": grid.config,
        "kind": grid.run(grid.rows[0], grid.variants[0], grid.seeds[0]).data.kind,
        "published": list(grid.published),
        "paper_rows": {row.label: row.paper for row in grid.rows if row.paper},
        "compare": [list(pair) for pair in grid.compare],
        "weights_of": [list(cell) for cell in grid.weights_of],
        "rows": {row.label: {variant.label: [] for variant in grid.variants} for row in grid.rows},
    }
    for row in grid.rows:
        for variant in grid.variants:
            for seed in grid.seeds:
                config = grid.run(row, variant, seed)
                if metrics := finished_run(runs, grid.config, config):
                    folder = run_folder(runs, grid.config, config.as_dict())
                    recipe = {"steps": config.training.iterations, "batch_size": config.data.batch_size}
                    entry = {"run": folder.name, "seed": seed, "recipe": recipe, **metrics}
                    found["rows"][row.label][variant.label].append(entry)
    return found


def all_runs(results: Mapping[str, Any]) -> list[Run]:
    """Every run; one that several cells share comes several times."""
    return [run for row in results["rows"].values() for runs in row.values() for run in runs]


def tests(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The test sets, and the main mean IoU of each, (`val`, `mIoU19`); none without runs."""
    runs = all_runs(results)
    scores = runs[0]["scores"] if runs else {}
    return [(name, next(iter(entry["mean_iou"]))) for name, entry in scores.items()]


def gains(results: Mapping[str, Any], row: str, test: str, main: str) -> list[float]:
    """Of each seed that both columns of a table of two have: the second one's mean IoU less the first one's."""
    cells = list(results["rows"][row].values())
    if len(cells) != 2:
        return []
    before, after = ({run["seed"]: run["scores"][test]["mean_iou"][main] for run in runs} for runs in cells)
    return [after[seed] - before[seed] for seed in before if seed in after]


def weight_ranges(run: Run) -> dict[str, list[tuple[float, float, float]]]:
    """Of each loss and class: the least, mean and greatest weight over the logged steps."""
    return {
        loss: [(min(values), mean(values), max(values)) for values in zip(*history["weights"], strict=True)]
        for loss, history in run["class_weights"].items()
    }
