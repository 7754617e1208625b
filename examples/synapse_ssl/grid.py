"""Many runs of one configuration, and their table: methods with and without DyCE, label budgets, seeds.

A grid names a configuration, its methods and pixel losses, and what makes the supervised rows a bound for the others.
Finished runs are kept and shared between grids; processes that run other `--seeds`, `--budgets` or `--methods` of one
grid may work side by side. A report keeps what it already has of runs that are not in `--runs`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from examples.common.config import read_named
from examples.common.figures import save_figure
from examples.common.outcome import finished_run
from examples.common.training import write_json, write_text
from examples.synapse_ssl.config import Config, load_config
from examples.synapse_ssl.plots import bars, gain_against_frequency
from examples.synapse_ssl.report import report
from examples.synapse_ssl.rows import budgets_of

GRIDS = Path(__file__).parent / "grids"
_KEPT = ("note", "data", "scores", "class_share", "tested_step", "seconds", "device", "commit", "versions")


@dataclass(frozen=True)
class Cell:
    """One run of a grid."""

    budget: float
    method: str
    pixel: str
    seed: int
    bound: bool
    config: Config

    def place(self) -> dict[str, Any]:
        """What tells it from the grid's other runs."""
        return {key: value for key, value in vars(self).items() if key != "config"}


@dataclass(frozen=True)
class Grid:
    """Methods × pixel losses × label budgets × seeds; with a bound, supervised × pixel losses × seeds beside them."""

    name: str
    title: str
    config: str
    budgets: tuple[float, ...]
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    pixels: tuple[str, ...]
    bound: tuple[str, ...]  # what the bound's configuration sets; empty: there is none

    def config_of(self, method: str) -> str:
        """The configuration's name: `{method}` in the grid's stands for the method."""
        return self.config.format(method=method)

    def cells(self, seeds: Sequence[int] = ()) -> list[Cell]:
        """All runs, the bounds first; of these seeds alone, where any are given."""
        chosen = seeds or self.seeds
        rows: list[tuple[str, tuple[str, ...], bool]] = (
            [("supervised", self.bound, True)] if self.bound else []
        )
        rows += [
            (method, (f"data.budget={budget}",), False)
            for budget, method in product(self.budgets, self.methods)
        ]
        return [self._cell(*row, pixel, seed) for row in rows for pixel, seed in product(self.pixels, chosen)]

    def _cell(self, method: str, labels: Sequence[str], bound: bool, pixel: str, seed: int) -> Cell:
        choices = [f'method="{method}"', f'supervised.pixel="{pixel}"', f"training.seed={seed}", *labels]
        config = load_config(self.config_of(method), choices)
        return Cell(config.data.budget, method, pixel, seed, bound, config)


def load_grid(name: str) -> Grid:
    """A grid by path, or by the name of a file in `examples/synapse_ssl/grids`.

    Raises:
        FileNotFoundError: no such file; the message lists those there are.
        ValueError: a key is missing, or a value does not fit the configuration.
    """
    path, content = read_named(name, GRIDS, "grid")
    try:
        axes = [tuple(content[key]) for key in ("budgets", "seeds", "methods", "pixels")]
        grid = Grid(path.stem, content["title"], content["config"], *axes, tuple(content.get("bound", ())))
    except KeyError as error:
        raise ValueError(f"{path} lacks the key {error}") from error
    grid.cells(grid.seeds[:1])
    return grid


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of a grid's command line."""
    parser.add_argument("--budgets", type=float, nargs="*", help="of the grid's label budgets")
    parser.add_argument("--methods", nargs="*", help="of the grid's methods")


def runs(given: argparse.Namespace) -> Iterator[tuple[str, str, Config]]:
    """What a command line asks for, seed by seed: what it is, its configuration's name, and the configuration."""
    grid = load_grid(given.grid)
    for cell in (cell for seed in given.seeds or grid.seeds for cell in grid.cells([seed])):
        wanted = not given.budgets or cell.budget in given.budgets
        if wanted and (not given.methods or cell.method in given.methods):
            label = f"{cell.method}, {cell.pixel}, {cell.budget:.0%} labelled, seed {cell.seed}"
            yield label, grid.config_of(cell.method), cell.config


def page(given: argparse.Namespace) -> str:
    """Write the report that a command line asks for."""
    return write_report(load_grid(given.grid), given.runs, given.out)


def collect(grid: Grid, runs: Path, former: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the finished runs scored, as plain data: a list of runs with their method, pixel loss, budget and seed.

    Args:
        grid: whose runs.
        runs: their folder.
        former: an earlier collection, whose runs stand for those that are not in the folder; one whose configuration
            has another note now is left out.
    """
    former = former or {"classes": [], "runs": []}
    earlier = {_key(entry): entry for entry in former["runs"]}
    found: dict[str, Any] = {"title": grid.title, "config": grid.config, "classes": [], "runs": []}
    for cell in grid.cells():
        entry = finished_run(runs, grid.config_of(cell.method), cell.config) or earlier.get(
            _key(cell.place())
        )
        if entry is not None and entry["note"] == cell.config.note:
            found["classes"] = entry.get("classes", former["classes"])
            found["runs"].append(cell.place() | {key: entry[key] for key in _KEPT})
    return found


def _key(entry: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(entry[name] for name in ("budget", "method", "pixel", "seed", "bound"))


def write_report(grid: Grid, runs: Path, out: Path) -> str:
    """Write `OUT/GRID.json`, `.md` and, where runs are finished, the plots of each budget; return the Markdown."""
    path = out / f"{grid.name}.json"
    results = collect(grid, runs, json.loads(path.read_text()) if path.is_file() else None)
    text = report(results)
    write_json(path, results)
    write_text(out / f"{grid.name}.md", text)
    for budget in budgets_of(results):
        stem = f"{grid.name}_{round(100 * budget)}"
        save_figure(bars(results, budget), out / f"{stem}_dsc.png")
        if gain := gain_against_frequency(results, budget):
            save_figure(gain, out / f"{stem}_gain.png")
    return text
