"""Many runs of one configuration, and their table: components, losses, label budgets, seeds.

    python -m examples.semidavil.grid run camvid_components --target FOLDER
    python -m examples.semidavil.grid report camvid_components --out benchmarks/results/semidavil

A grid names a configuration, and for each row of the table a label and overrides, or a configuration of its own.
Finished runs are kept and shared between grids, and with `examples.semidavil.train` of the same configuration;
processes that run other `--seeds` or `--budgets` of one grid may work side by side. `report` writes GRID.json, GRID.md
and plots from the finished runs; it needs no data set.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from examples.common.command import grid_parser
from examples.common.config import read_named, run_folder
from examples.common.distributed import process_group, rank
from examples.semidavil.config import Config, load_config
from examples.semidavil.train import add_folders, train, with_folders

GRIDS = Path(__file__).parent / "grids"


@dataclass(frozen=True)
class Row:
    """A row of the table; `{budget}` in `config` stands for the number of labels."""

    label: str
    config: str
    overrides: tuple[str, ...] = ()
    paper: str = ""  # the paper's row in published.toml

    def run(self, budget: int, seed: int) -> Config:
        """The configuration of one run. The row's own `data.budget` wins: it is one run for all budgets."""
        return load_config(
            self._name(budget), [f"data.budget={budget}", f"training.seed={seed}", *self.overrides]
        )

    def folder(self, runs: Path, budget: int, seed: int) -> Path:
        """Where that run lies: the folder that `examples.semidavil.train` takes for it."""
        return run_folder(runs, Path(self._name(budget)).stem, self.run(budget, seed).as_dict())

    def _name(self, budget: int) -> str:
        return self.config.format(budget=budget)


@dataclass(frozen=True)
class Grid:
    """Rows × label budgets × seeds."""

    name: str
    title: str
    budgets: tuple[int, ...]
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    paper: str = ""  # what of the paper the grid is laid out after
    compare: tuple[str, ...] = ()  # two labels: CE, and the same with DyCE


def load_grid(name: str) -> Grid:
    """A grid by path, or by the name of a file in `examples/semidavil/grids`.

    Raises:
        FileNotFoundError: no such file; the message lists those there are.
        ValueError: a key is missing, `compare` names no rows, or an override does not fit the configuration.
    """
    path, content = read_named(name, GRIDS, "grid")
    try:
        rows = tuple(_row(row, content) for row in content["row"])
        title, budgets, seeds = content["title"], tuple(content["budgets"]), tuple(content["seeds"])
    except KeyError as error:
        raise ValueError(f"{path} lacks the key {error}") from error
    compare = tuple(content.get("compare", ()))
    if compare and (len(compare) != 2 or not {*compare} <= {row.label for row in rows}):
        raise ValueError(f"{path}: compare must be the labels of two rows, got {list(compare)}")
    for row in rows:
        row.run(budgets[0], seeds[0])
    return Grid(path.stem, title, budgets, seeds, rows, content.get("paper", ""), compare)


def _row(row: Mapping[str, Any], content: Mapping[str, Any]) -> Row:
    config = row["config"] if "config" in row else content["config"]
    return Row(row["label"], config, tuple(row.get("set", ())), row.get("paper", ""))


def run(grid: Grid, given: argparse.Namespace, device: str) -> None:
    """Carry out what is not finished, seed by seed."""
    for seed in grid.seeds:
        for budget in grid.budgets:
            for row in grid.rows:
                if rank() == 0:
                    print(f"{row.label}, {budget} labels, seed {seed}", flush=True)
                config, folder = (
                    with_folders(row.run(budget, seed), given),
                    row.folder(given.runs, budget, seed),
                )
                train(config, folder, given.runs / "kept", device=device)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = grid_parser(__doc__, grids="examples/semidavil/grids", out="benchmarks/results/semidavil")
    add_folders(parser)
    parser.add_argument("--budgets", type=int, nargs="*", help="the grid's unless given")
    given = parser.parse_args(arguments)
    grid = load_grid(given.grid)
    seeds, budgets = tuple(given.seeds or grid.seeds), tuple(given.budgets or grid.budgets)
    grid = replace(grid, seeds=seeds, budgets=budgets)
    if given.action == "run":
        with process_group(given.device) as device:
            run(grid, given, str(device))
        return
    from examples.semidavil.report import write_report  # noqa: PLC0415 (matplotlib)

    print(write_report(grid, given.runs, given.out))


if __name__ == "__main__":
    main()
