"""Many runs of one configuration, and their table: components, losses, label budgets, seeds.

A grid has label budgets, seeds and rows: of each a label and overrides. They are overrides of the configuration that it
names, or of one of several that `--config` chooses: a published table of two sources. Finished runs are kept and shared
between grids, and with `train` of the same configuration; processes that run other `--seeds` or `--budgets` of one grid
may work side by side. A report is GRID.json, GRID.md and plots, from the finished runs, with the paper's numbers of
`published.toml`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from examples.common.config import read_named, run_folder
from examples.semidavil.config import Config, load_config

GRIDS = Path(__file__).parent / "grids"


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    label: str  # that of the paper's row, where the paper has it
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """Rows × label budgets × seeds of one configuration."""

    name: str
    title: str
    config: str
    budgets: tuple[int, ...]
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    published: tuple[str, ...] = ()  # tables of published.toml
    published_classes: Mapping[int, str] = field(default_factory=dict)  # of each class, by label budget
    compare: tuple[str, ...] = ()  # two labels: CE, and the same with DyCE
    note: str = ""  # what a reader of the table has to know

    def run(self, row: Row, budget: int, seed: int) -> Config:
        """The configuration of one run."""
        own = [f"data.budget={budget}", f"training.seed={seed}", *row.overrides]
        return load_config(self.config, own)

    def folder(self, runs: Path, row: Row, budget: int, seed: int) -> Path:
        """Where that run lies: the folder that `train` takes for it."""
        return run_folder(runs, self.config, self.run(row, budget, seed).as_dict())


def load_grid(name: str, config: str | None = None) -> Grid:
    """A grid by path, or by the name of a file in `examples/semidavil/grids`. `rows_of` takes another one's rows.

    Args:
        name: of the grid.
        config: one of the grid's configurations; needed where there are several. "{config}" in the file stands for it.

    Raises:
        FileNotFoundError: no such file; the message lists those there are.
        ValueError: a key is missing, `config` is none of the grid's, `compare` names no rows, or an override does not
            fit the configuration.
    """
    path, content = read_named(name, GRIDS, "grid")
    try:
        parts = read_named(content["rows_of"], path.parent, "grid")[1] if "rows_of" in content else content
        rows = [*parts["row"], *content.get("extra_row", ())]
        config = _chosen(path, content["configs"], config)
        several = len(content["configs"]) > 1
        classes = content.get("published_classes", {})
        grid = Grid(
            f"{path.stem}_{config}" if several else path.stem,
            content["title"].format(config=config),
            config,
            tuple(content["budgets"]),
            tuple(content["seeds"]),
            tuple(Row(row["label"], tuple(row["set"])) for row in rows),
            tuple(key.format(config=config) for key in content.get("published", ())),
            {int(budget): key.format(config=config) for budget, key in classes.items()},
            tuple(content.get("compare", ())),
            content.get("note", ""),
        )
    except KeyError as error:
        raise ValueError(f"{path} lacks the key {error}") from error
    compare = grid.compare
    if compare and (len(compare) != 2 or not {*compare} <= {row.label for row in grid.rows}):
        raise ValueError(f"{path}: compare must be the labels of two rows, got {list(compare)}")
    for row in grid.rows:
        grid.run(row, grid.budgets[0], grid.seeds[0])
    return grid


def _chosen(path: Path, configs: Sequence[str], config: str | None) -> str:
    if config is None and len(configs) == 1:
        return configs[0]
    if config is None or config not in configs:
        raise ValueError(f"{path.stem} needs --config, one of {', '.join(configs)}; got {config!r}")
    return config


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of a grid's command line."""
    parser.add_argument("--config", help="one of the grid's configurations, where it has several")
    parser.add_argument("--budgets", type=int, nargs="*", help="the grid's unless given")


def runs(given: argparse.Namespace) -> Iterator[tuple[str, str, Config]]:
    """What a command line asks for, seed by seed: what it is, its configuration's name, and the configuration."""
    grid = _asked_for(given)
    for seed, budget, row in product(grid.seeds, grid.budgets, grid.rows):
        yield f"{row.label}, {budget} labels, seed {seed}", grid.config, grid.run(row, budget, seed)


def page(given: argparse.Namespace) -> str:
    """Write the report that a command line asks for."""
    from examples.semidavil.report import write_report  # noqa: PLC0415 (matplotlib)

    return write_report(_asked_for(given), given.runs, given.out)


def _asked_for(given: argparse.Namespace) -> Grid:
    grid = load_grid(given.grid, given.config)
    seeds, budgets = tuple(given.seeds or grid.seeds), tuple(given.budgets or grid.budgets)
    return replace(grid, seeds=seeds, budgets=budgets)
