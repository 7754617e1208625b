"""Each loss's own learning rate, and numbers: those whose run scores best on training images that are held out.

The final runs train on those images again. No test set has a say; labels that the final runs have spoilt are whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.accuracy.grid import Grid, RunConfig, best_of
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
                found[label][rate] = _score(config, runs)
    done = [label for label in grid.labels if found[label].keys() >= rates.keys()]
    losses = tuple(loss for label, loss in zip(grid.labels, grid.losses, strict=True) if label in done)
    scores = {label: {rate: found[label][rate] for rate in rates} for label in done}
    return replace(grid, labels=tuple(done), losses=losses, rate_scores=scores)


def tuning_runs(grid: Grid, known: Known | None = None) -> list[tuple[str, str, RunConfig]]:
    """Of a grid whose losses have their rates: a run for each setting to try, with its label and what files call it.

    Settings whose score is known are left out.
    """
    losses, found = dict(zip(grid.labels, grid.losses, strict=True)), []
    for label, settings in grid.tune.items():
        if label in losses:
            best = best_of(grid.rate_scores[label])
            searched = rate_grids(grid)[best]
            (seed,) = searched.seeds
            for setting in settings:
                loss = losses[label] | {"kwargs": losses[label]["kwargs"] | setting}
                config = RunConfig(searched.data, grid.model, searched.training, loss, seed, grid.device)
                found.append((label, _name_of(setting), config))
    return [run for run in found if run[1] not in (known or {}).get(run[0], {})]


def _name_of(setting: Mapping[str, Any]) -> str:
    return ", ".join(
        _name_of(value) if isinstance(value, Mapping) else f"{key} = {value:g}"
        for key, value in setting.items()
    )


def tuned(grid: Grid, runs: Path, known: Known | None = None) -> Grid:
    """The grid with the best of its settings for each loss, its own among them; those that are not finished are out."""
    tried: dict[str, dict[str, float]] = {}
    best = dict(zip(grid.labels, grid.losses, strict=True))
    for label, name, config in tuning_runs(grid):
        scores = tried.setdefault(label, {"as it is": max(grid.rate_scores[label].values())})
        finished = is_finished(config, runs)
        score = _score(config, runs) if finished else (known or {}).get(label, {}).get(name)
        if score is None:
            best.pop(label, None)
        elif label in best:
            best[label] = config.loss if score > max(scores.values()) else best[label]
            scores[name] = score
    scores = {label: scores for label, scores in tried.items() if label in best}
    return replace(grid, labels=tuple(best), losses=tuple(best.values()), setting_scores=scores)


def _score(config: RunConfig, runs: Path) -> float:
    (entry,) = read_metrics(runs / config.folder_name)["scores"].values()
    return main_score(entry)


def main_score(entry: Mapping[str, Any]) -> float:
    """What a rate is chosen by, in per cent: the second class's IoU of two, structures' Dice, else the mean IoU."""
    score = entry["iou"][1] if len(entry["iou"]) == 2 else entry.get("mean_dice", entry["mean_iou"])
    return 100 * (score or 0.0)
