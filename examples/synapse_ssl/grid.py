"""Many runs of one configuration, and their table: methods with and without DyCE, label budgets, seeds.

    python -m examples.synapse_ssl.grid run acdc_methods --data FOLDER
    python -m examples.synapse_ssl.grid report acdc_methods --out benchmarks/results/synapse_ssl

A grid names a configuration, its methods and pixel losses. Finished runs are kept and shared between grids; processes
that run other `--seeds`, `--budgets` or `--methods` of one grid may work side by side.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from examples.common.command import grid_parser
from examples.common.config import read_named, run_folder
from examples.common.outcome import METRICS
from examples.common.training import write_atomically
from examples.synapse_ssl.config import Config, load_config
from examples.synapse_ssl.plots import bars, gain_against_frequency, save_figure
from examples.synapse_ssl.report import report
from examples.synapse_ssl.train import add_folders, train, with_folder

GRIDS = Path(__file__).parent / "grids"
_KEPT = ("note", "data", "scores", "class_share", "tested_step", "seconds", "device", "commit", "versions")


@dataclass(frozen=True)
class Grid:
    """Methods × pixel losses × label budgets × seeds."""

    name: str
    title: str
    config: str
    budgets: tuple[float, ...]
    seeds: tuple[int, ...]
    methods: tuple[str, ...]
    pixels: tuple[str, ...]

    def config_of(self, method: str) -> str:
        """The configuration's name: `{method}` in the grid's stands for the method."""
        return self.config.format(method=method)

    def run(self, method: str, pixel: str, budget: float, seed: int) -> Config:
        """The configuration of one run."""
        names = [f'method="{method}"', f'supervised.pixel="{pixel}"']
        return load_config(self.config_of(method), [*names, f"data.budget={budget}", f"training.seed={seed}"])


def load_grid(name: str) -> Grid:
    """A grid by path, or by the name of a file in `examples/synapse_ssl/grids`.

    Raises:
        FileNotFoundError: no such file; the message lists those there are.
        ValueError: a key is missing, or a value does not fit the configuration.
    """
    path, content = read_named(name, GRIDS, "grid")
    try:
        axes = [tuple(content[key]) for key in ("budgets", "seeds", "methods", "pixels")]
        grid = Grid(path.stem, content["title"], content["config"], *axes)
    except KeyError as error:
        raise ValueError(f"{path} lacks the key {error}") from error
    for method, pixel in product(grid.methods, grid.pixels):
        grid.run(method, pixel, grid.budgets[0], grid.seeds[0])
    return grid


def run(grid: Grid, given: argparse.Namespace) -> None:
    """Carry out what is not finished, seed by seed."""
    axes = (
        given.seeds or grid.seeds,
        given.budgets or grid.budgets,
        given.methods or grid.methods,
        grid.pixels,
    )
    for seed, budget, method, pixel in product(*axes):
        config = with_folder(grid.run(method, pixel, budget, seed), given)
        print(f"{method}, {pixel}, {budget:.0%} labelled, seed {seed}", flush=True)
        folder = run_folder(given.runs, grid.config_of(method), config.as_dict())
        train(config, folder, given.runs / "kept", device=given.device)


def collect(grid: Grid, runs: Path) -> dict[str, Any]:
    """What the finished runs scored, as plain data: a list of runs with their method, pixel loss, budget and seed."""
    found: dict[str, Any] = {"title": grid.title, "config": grid.config, "classes": [], "runs": []}
    for budget, method, pixel, seed in product(grid.budgets, grid.methods, grid.pixels, grid.seeds):
        config = grid.run(method, pixel, budget, seed)
        path = run_folder(runs, grid.config_of(method), config.as_dict()) / METRICS
        if path.is_file():
            metrics = json.loads(path.read_text())
            found["classes"] = metrics["classes"]
            place = {"budget": budget, "method": method, "pixel": pixel, "seed": seed}
            found["runs"].append(place | {key: metrics[key] for key in _KEPT})
    return found


def write_report(grid: Grid, runs: Path, out: Path) -> str:
    """Write `OUT/GRID.json`, `.md` and, where runs are finished, the plots of each budget; return the Markdown."""
    results = collect(grid, runs)
    text = report(results)
    files = {f"{grid.name}.json": json.dumps(results, indent=1) + "\n", f"{grid.name}.md": text}
    for name, content in files.items():
        write_atomically(out / name, lambda path, content=content: path.write_text(content))  # type: ignore[misc]
    for budget in sorted({entry["budget"] for entry in results["runs"]}):
        stem = f"{grid.name}_{round(100 * budget)}"
        save_figure(bars(results, budget), out / f"{stem}_dsc.png")
        if len(grid.pixels) > 1:
            save_figure(gain_against_frequency(results, budget), out / f"{stem}_gain.png")
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = grid_parser(__doc__, grids="examples/synapse_ssl/grids", out="benchmarks/results/synapse_ssl")
    add_folders(parser)
    parser.add_argument("--budgets", type=float, nargs="*", help="of the grid's label budgets")
    parser.add_argument("--methods", nargs="*", help="of the grid's methods")
    given = parser.parse_args(arguments)
    grid = load_grid(given.grid)
    if given.action == "run":
        run(grid, given)
    else:
        print(write_report(grid, given.runs, given.out))


if __name__ == "__main__":
    main()
