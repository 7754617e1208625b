"""Each loss's own learning rate: the one whose run scores best on training images that are held out from the search.

The final runs train on those images again. No test set has a say; labels that the final runs have spoilt are whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.accuracy.grid import Grid
from benchmarks.accuracy.run import is_finished, read_metrics

Known = Mapping[str, Mapping[str, float]]  # label -> rate -> score, of runs that were made elsewhere


def rate_grids(grid: Grid, known: Known | None = None) -> dict[str, Grid]:
    """The runs of the search, a grid for each rate, by what files call the rate; none without a search.

    Losses whose score with a rate is known are not in its grid.
    """
    search = grid.search
    if search is None:
        return {}
    data = {key: value for key, value in grid.data.items() if key != "label_noise"}
    kept = {"data": data | {"held_out": search.held_out}, "seeds": (search.seed,), "search": None}
    training = grid.training | {"iterations": search.iterations, "eval_every": 0}
    searched = {
        f"{rate:g}": replace(grid, **kept, training=training | {"max_lr": rate}) for rate in search.max_lr
    }
    return {rate: _without(of_rate, rate, known or {}) for rate, of_rate in searched.items()}


def _without(grid: Grid, rate: str, known: Known) -> Grid:
    pairs = zip(grid.labels, grid.losses, strict=True)
    wanted = [(label, loss) for label, loss in pairs if rate not in known.get(label, {})]
    return replace(grid, labels=tuple(label for label, _ in wanted), losses=tuple(loss for _, loss in wanted))


def with_own_rates(grid: Grid, runs: Path, known: Known | None = None) -> Grid:
    """The grid of the losses whose search is finished, each with its own rate; without a search the same grid.

    Args:
        grid: the grid as its file has it.
        runs: the folder of the runs.
        known: scores of a search whose runs are elsewhere.
    """
    rates = rate_grids(grid)
    if not rates:
        return grid
    found: dict[str, dict[str, float]] = {label: dict((known or {}).get(label, {})) for label in grid.labels}
    for rate, searched in rates.items():
        for label, config in searched.runs():
            if is_finished(config, runs):
                (entry,) = read_metrics(runs / config.folder_name)["scores"].values()
                found[label][rate] = main_score(entry)
    done = [label for label in grid.labels if found[label].keys() >= rates.keys()]
    losses = tuple(loss for label, loss in zip(grid.labels, grid.losses, strict=True) if label in done)
    scores = {label: {rate: found[label][rate] for rate in rates} for label in done}
    return replace(grid, labels=tuple(done), losses=losses, rate_scores=scores)


def main_score(entry: Mapping[str, Any]) -> float:
    """What a rate is chosen by, in per cent: the second class's IoU of two, else the mean IoU."""
    score = entry["iou"][1] if len(entry["iou"]) == 2 else entry["mean_iou"]
    return 100 * (score or 0.0)
