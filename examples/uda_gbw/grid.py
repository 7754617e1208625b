"""Many runs of one configuration, and their table: methods, class weights, λ, readings of the gradient, seeds.

A grid has rows and variants, the columns of its table: each a label and overrides, the row's after the variant's.
Finished runs are kept and shared between grids; processes that run other `--seeds` or `--rows` of one grid may work
side by side. A report is GRID.json, GRID.md and plots, from the finished runs, with the paper's numbers of
`published.toml`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from examples.common.config import read_named
from examples.uda_gbw.config import Config, load_config

GRIDS = Path(__file__).parent / "grids"


@dataclass(frozen=True)
class Part:
    """A row or a variant."""

    label: str
    overrides: tuple[str, ...]
    paper: str = ""  # the paper's row, where it has another label


@dataclass(frozen=True)
class Grid:
    """Rows × variants × seeds."""

    name: str
    title: str
    config: str
    seeds: tuple[int, ...]
    rows: tuple[Part, ...]
    variants: tuple[Part, ...]
    overrides: tuple[str, ...] = ()  # of all runs
    published: tuple[str, ...] = ()  # tables of published.toml
    weights_of: tuple[tuple[str, str], ...] = ()  # the cells, (row, variant), whose class weights are drawn
    compare: tuple[
        tuple[str, str], ...
    ] = ()  # pairs of variants, or of rows: what the second gains over the first

    def run(self, row: Part, variant: Part, seed: int) -> Config:
        """The configuration of one run."""
        own = [*self.overrides, *variant.overrides, *row.overrides]
        return load_config(self.config, [*own, f"training.seed={seed}"])


def load_grid(name: str) -> Grid:
    """A grid by path, or by the name of a file in `examples/uda_gbw/grids`.

    `rows_of` takes another one's rows, and its variants where the file has none.

    Raises:
        FileNotFoundError: no such file; the message lists those there are.
        ValueError: a key is missing, `weights_of` names no cell, `compare` neither variants nor rows, or an override
            does not fit the configuration.
    """
    path, content = read_named(name, GRIDS, "grid")
    try:
        parts = read_named(content["rows_of"], path.parent, "grid")[1] if "rows_of" in content else content
        grid = Grid(
            path.stem,
            content["title"],
            content["config"],
            tuple(content["seeds"]),
            tuple(map(_part, parts["row"])),
            tuple(map(_part, content["variant"] if "variant" in content else parts["variant"])),
            tuple(content.get("set", ())),
            tuple(content.get("published", ())),
            tuple((row, variant) for row, variant in content.get("weights_of", ())),
            tuple((before, after) for before, after in content.get("compare", ())),
        )
    except KeyError as error:
        raise ValueError(f"{path} lacks the key {error}") from error
    cells = {(row.label, variant.label) for row, variant in product(grid.rows, grid.variants)}
    if unknown := sorted(set(grid.weights_of) - cells):
        raise ValueError(f"{path}: weights_of must be pairs of a row and a variant, got {list(unknown[0])}")
    sides = [{part.label for part in parts} for parts in (grid.variants, grid.rows)]
    if unknown := [pair for pair in grid.compare if not any({*pair} <= side for side in sides)]:
        raise ValueError(f"{path}: compare must be pairs of variants or of rows, got {list(unknown[0])}")
    for row, variant in product(grid.rows, grid.variants):
        grid.run(row, variant, grid.seeds[0])
    return grid


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of a grid's command line."""
    parser.add_argument("--rows", nargs="*", help="of the grid's rows, by label")


def runs(given: argparse.Namespace) -> Iterator[tuple[str, str, Config]]:
    """What a command line asks for, seed by seed: what it is, its configuration's name, and the configuration.

    Raises:
        ValueError: `--rows` names a row that the grid does not have.
    """
    grid = load_grid(given.grid)
    labels = [row.label for row in grid.rows]
    if unknown := sorted(set(given.rows or ()) - set(labels)):
        raise ValueError(f"{grid.name} has the rows {', '.join(labels)}, got {unknown[0]!r}")
    rows = [row for row in grid.rows if not given.rows or row.label in given.rows]
    for seed, row, variant in product(given.seeds or grid.seeds, rows, grid.variants):
        yield f"{row.label}, {variant.label}, seed {seed}", grid.config, grid.run(row, variant, seed)


def page(given: argparse.Namespace) -> str:
    """Write the report that a command line asks for."""
    from examples.uda_gbw.report import write_report  # noqa: PLC0415 (matplotlib)

    return write_report(load_grid(given.grid), given.runs, given.out)


def _part(content: Mapping[str, Any]) -> Part:
    return Part(content["label"], tuple(content["set"]), content.get("paper", ""))
