"""From a grid's finished runs to plain data, and the numbers that its tables and plots are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from examples.common.logs import read_log
from examples.common.outcome import finished_run
from examples.semidavil.grid import Grid

Run = Mapping[str, Any]
CONFIDENT = "confident"  # the column of the log, and the curve


def collect(grid: Grid, runs: Path) -> dict[str, Any]:
    """The finished runs: {"rows": {label: {budget: [run]}}} and what the grid says of itself, as plain data.

    A run has its seed, its recipe and everything in its `metrics.json`: `scores` with the IoU of each class, and, for
    runs that recorded them, commit, versions, seconds and device. `confident` is the share of pixels that passed
    equation 4's threshold, the mean over the logged steps, of runs with consistency training. `curves` has the same
    against the steps, and the main mean IoU of each test set: [[step, share], ...].
    """
    found: dict[str, Any] = {
        "title": grid.title,
        "note": grid.note,
        "kind": grid.run(grid.rows[0], grid.budgets[0], grid.seeds[0]).data.kind,
        "published": list(grid.published),
        "published_classes": {str(budget): key for budget, key in grid.published_classes.items()},
        "compare": list(grid.compare),
        "rows": {},
    }
    for row in grid.rows:
        found["rows"][row.label] = {}
        for budget in grid.budgets:
            cell = found["rows"][row.label][str(budget)] = []
            for seed in grid.seeds:
                config = grid.run(row, budget, seed)
                if metrics := finished_run(runs, grid.config, config):
                    recipe = {
                        "steps": config.training.iterations,
                        "batch_size": config.data.batch_size,
                        "accumulation": config.training.accumulation,
                    }
                    logged = _logged(grid.folder(runs, row, budget, seed), metrics["scores"])
                    cell.append({"seed": seed, "recipe": recipe, **metrics, **logged})
    return found


def _logged(folder: Path, scores: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's logs say: its curves, and how many pixels were confident where consistency training was on."""
    curves = {
        test: _curve(read_log(folder / f"scores_{test}.csv"), next(iter(entry["mean_iou"])))
        for test, entry in scores.items()
    }
    rows = read_log(folder / "log.csv")
    if not rows or CONFIDENT not in rows[0]:
        return {"curves": curves}
    shares = _curve(rows, CONFIDENT)
    return {CONFIDENT: mean(share for _, share in shares), "curves": curves | {CONFIDENT: shares}}


def _curve(rows: Sequence[Mapping[str, float]], key: str) -> list[list[float]]:
    return [[int(row["step"]), row[key]] for row in rows]


def all_runs(results: Mapping[str, Any]) -> list[Run]:
    """Every run once: a row without labels has one run for all budgets."""
    seen: dict[tuple[str, int, int], Run] = {}
    for label, row in results["rows"].items():
        for runs in row.values():
            for run in runs:
                seen[label, run["labelled"], run["seed"]] = run
    return list(seen.values())


def tests(results: Mapping[str, Any]) -> dict[str, list[str]]:
    """The test sets, and the mean IoUs of each, the main one first: {`val`: [`mIoU16`, `mIoU13`]}; {} without runs."""
    runs = all_runs(results)
    return {name: list(entry["mean_iou"]) for name, entry in runs[0]["scores"].items()} if runs else {}


def paired(results: Mapping[str, Any]) -> dict[str, list[tuple[Run, Run]]]:
    """For each budget the runs of the two compared rows that have the same seed."""
    if not results["compare"]:
        return {}
    base, other = (results["rows"][label] for label in results["compare"])
    found = {}
    for budget in base:
        seeds = {run["seed"]: run for run in other[budget]}
        pairs = [(run, seeds[run["seed"]]) for run in base[budget] if run["seed"] in seeds]
        if pairs:
            found[budget] = pairs
    return found


def class_gain(pair: tuple[Run, Run], test: str, number: int) -> float:
    """IoU points that one class gains from the first to the second run."""
    before, after = (run["scores"][test]["iou"][number] for run in pair)
    return 100 * (float(after) - float(before))


def shares(results: Mapping[str, Any], test: str) -> list[float]:
    """Each class's share of a test set's labelled pixels."""
    pixels = all_runs(results)[0]["scores"][test]["pixels"]
    return [count / sum(pixels) for count in pixels]
