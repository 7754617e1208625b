"""Many runs of one configuration, and their table: the method, and each of its parts removed or replaced.

A grid names a configuration, and for each row of the table a label, overrides, and which row of the paper's tables it
is. Finished runs are kept and shared between grids; processes that run other `--seeds` of one grid may work side by
side. A report is GRID.json, GRID.md and plots, from the finished runs, with the paper's numbers of `published.toml`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from examples.common.config import read_named
from examples.t2s_da.config import Config, load_config

GRIDS = Path(__file__).parent / "grids"


@dataclass(frozen=True)
class Grid:
    """Rows × seeds. The first row is what the others are compared with."""

    name: str
    title: str
    config: str
    seeds: tuple[int, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]  # label, overrides
    paper: str  # what of the paper the grid is laid out after
    published: tuple[str, ...] = ()  # tables of published.toml
    # {table: {label: (the printed row, the column of its mIoU)}}
    names: Mapping[str, Mapping[str, tuple[str, str]]] = field(default_factory=dict)

    def run(self, overrides: Sequence[str], seed: int) -> Config:
        """The configuration of one run."""
        return load_config(self.config, [f"training.seed={seed}", *overrides])


def load_grid(name: str) -> Grid:
    """A grid by path, or by the name of a file in `examples/t2s_da/grids`. `rows_of` takes another one's rows.

    Raises:
        FileNotFoundError: no such file; the message lists those there are.
        ValueError: a key is missing, or an override does not fit the configuration.
    """
    path, content = read_named(name, GRIDS, "grid")
    try:
        parts = read_named(content["rows_of"], path.parent, "grid")[1] if "rows_of" in content else content
        rows = tuple((row["label"], tuple(row["set"])) for row in parts["row"])
        published = tuple(content.get("published", ()))
        names = {key: _names(key, parts["row"]) for key in published}
        title, config, seeds = content["title"], content["config"], tuple(content["seeds"])
        grid = Grid(path.stem, title, config, seeds, rows, content["paper"], published, names)
    except KeyError as error:
        raise ValueError(f"{path} lacks the key {error}") from error
    for _, overrides in rows:
        grid.run(overrides, grid.seeds[0])
    return grid


def _names(key: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """A row names what the paper prints by its row there, or by [row, column] where that is not the mIoU."""
    found = {}
    for row in rows:
        named = row.get("paper", {}).get(key)
        if named is not None:
            found[row["label"]] = (named, "mIoU") if isinstance(named, str) else (named[0], named[1])
    return found


def runs(given: argparse.Namespace) -> Iterator[tuple[str, str, Config]]:
    """What a command line asks for, seed by seed: what it is, its configuration's name, and the configuration."""
    grid = load_grid(given.grid)
    for seed, (label, overrides) in product(given.seeds or grid.seeds, grid.rows):
        yield f"{label}, seed {seed}", grid.config, grid.run(overrides, seed)


def page(given: argparse.Namespace) -> str:
    """Write the report that a command line asks for."""
    from examples.t2s_da.report import write_report  # noqa: PLC0415 (matplotlib)

    return write_report(load_grid(given.grid), given.runs, given.out)
