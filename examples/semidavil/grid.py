"""Many runs of one configuration, and their table: components, losses, label budgets, seeds.

    python -m examples.semidavil.grid run camvid_components --target FOLDER
    python -m examples.semidavil.grid report camvid_components --out benchmarks/results/semidavil

A grid names a configuration, and for each row of the table a label and overrides. Finished runs are kept and shared
between grids; processes that run other `--seeds` or `--budgets` of one grid may work side by side. `report` writes
GRID.json, GRID.md and plots from the finished runs; it needs no data set.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from examples.common.config import run_folder
from examples.common.distributed import process_group, rank
from examples.semidavil.config import Config, load_config
from examples.semidavil.train import add_folders, train, with_folders

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GRIDS = Path(__file__).parent / "grids"


@dataclass(frozen=True)
class Grid:
    """Rows × label budgets × seeds."""

    name: str
    title: str
    config: str
    budgets: tuple[int, ...]
    seeds: tuple[int, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]  # label, overrides
    paper: str = ""  # what of the paper the grid is laid out after
    paper_rows: tuple[tuple[str, str], ...] = ()  # label, the paper's row in published.toml
    compare: tuple[str, ...] = ()  # two labels: CE, and the same with DyCE

    def run(self, overrides: Sequence[str], budget: int, seed: int) -> Config:
        """The configuration of one run. A row's own `data.budget` wins: it is one run for all budgets."""
        return load_config(self.config, [f"data.budget={budget}", f"training.seed={seed}", *overrides])


def load_grid(name: str) -> Grid:
    """A grid by path, or by the name of a file in `examples/semidavil/grids`.

    Raises:
        FileNotFoundError: no such file; the message lists those there are.
        ValueError: a key is missing, `compare` names no rows, or an override does not fit the configuration.
    """
    path = Path(name) if name.endswith(".toml") else GRIDS / f"{name}.toml"
    if not path.is_file():
        raise FileNotFoundError(
            f"no grid {path}; those here are {', '.join(sorted(p.stem for p in GRIDS.glob('*.toml')))}"
        )
    content = tomllib.loads(path.read_text())
    try:
        rows = tuple((row["label"], tuple(row.get("set", ()))) for row in content["row"])
        title, config = content["title"], content["config"]
        paper_rows = tuple((row["label"], row["paper"]) for row in content["row"] if "paper" in row)
        compare = tuple(content.get("compare", ()))
        budgets, seeds = tuple(content["budgets"]), tuple(content["seeds"])
        grid = Grid(
            path.stem, title, config, budgets, seeds, rows, content.get("paper", ""), paper_rows, compare
        )
    except KeyError as error:
        raise ValueError(f"{path} lacks the key {error}") from error
    if compare and (len(compare) != 2 or not {*compare} <= {label for label, _ in rows}):
        raise ValueError(f"{path}: compare must be the labels of two rows, got {list(compare)}")
    for _, overrides in rows:
        grid.run(overrides, grid.budgets[0], grid.seeds[0])
    return grid


def run(grid: Grid, given: argparse.Namespace, device: str) -> None:
    """Carry out what is not finished, seed by seed."""
    for seed in given.seeds or grid.seeds:
        for budget in given.budgets or grid.budgets:
            for label, overrides in grid.rows:
                config = with_folders(grid.run(overrides, budget, seed), given)
                if rank() == 0:
                    print(f"{label}, {budget} labels, seed {seed}", flush=True)
                folder = run_folder(given.runs, grid.config, config.as_dict())
                train(config, folder, given.runs / "kept", device=device)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("run", "report"))
    parser.add_argument("grid", help="a file, or a name in examples/semidavil/grids")
    add_folders(parser)
    parser.add_argument("--seeds", type=int, nargs="*", help="of the grid's seeds")
    parser.add_argument("--budgets", type=int, nargs="*", help="of the grid's label budgets")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/semidavil"))
    given = parser.parse_args(arguments)
    grid = load_grid(given.grid)
    if given.action == "run":
        with process_group(given.device) as device:
            run(grid, given, str(device))
        return
    from examples.semidavil.report import write_report  # noqa: PLC0415 (matplotlib)

    print(write_report(grid, given.runs, given.out))


if __name__ == "__main__":
    main()
