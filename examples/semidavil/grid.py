"""Many runs of one configuration, and their table: components, losses, label budgets, seeds.

    python -m examples.semidavil.grid run camvid_components --target FOLDER
    python -m examples.semidavil.grid report camvid_components --out benchmarks/results/semidavil

A grid names a configuration, and for each row of the table a label and overrides. Finished runs are kept and shared
between grids; processes that run other `--seeds` or `--budgets` of one grid may work side by side.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from examples.common.training import write_atomically
from examples.semidavil.config import Config, load_config
from examples.semidavil.train import METRICS, add_folders, run_folder, train, with_folders

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GRIDS = Path(__file__).parent / "grids"
_RARE = 5


@dataclass(frozen=True)
class Grid:
    """Rows × label budgets × seeds."""

    name: str
    title: str
    config: str
    budgets: tuple[int, ...]
    seeds: tuple[int, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]  # label, overrides

    def run(self, overrides: Sequence[str], budget: int, seed: int) -> Config:
        """The configuration of one run. A row's own `data.budget` wins: it is one run for all budgets."""
        return load_config(self.config, [f"data.budget={budget}", f"training.seed={seed}", *overrides])


def load_grid(name: str) -> Grid:
    """A grid by path, or by the name of a file in `examples/semidavil/grids`.

    Raises:
        FileNotFoundError: no such file; the message lists those there are.
        ValueError: a key is missing, or an override does not fit the configuration.
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
        grid = Grid(path.stem, title, config, tuple(content["budgets"]), tuple(content["seeds"]), rows)
    except KeyError as error:
        raise ValueError(f"{path} lacks the key {error}") from error
    for _, overrides in rows:
        grid.run(overrides, grid.budgets[0], grid.seeds[0])
    return grid


def run(grid: Grid, given: argparse.Namespace) -> None:
    """Carry out what is not finished, seed by seed."""
    for seed in given.seeds or grid.seeds:
        for budget in given.budgets or grid.budgets:
            for label, overrides in grid.rows:
                config = with_folders(grid.run(overrides, budget, seed), given)
                print(f"{label}, {budget} labels, seed {seed}", flush=True)
                train(
                    config,
                    run_folder(given.runs, grid.config, config),
                    given.runs / "kept",
                    device=given.device,
                )


def collect(grid: Grid, runs: Path) -> dict[str, Any]:
    """The scores of the finished runs: {row: {budget: [{seed, scores}]}}, as plain data."""
    found: dict[str, Any] = {"title": grid.title, "rows": {}}
    for label, overrides in grid.rows:
        found["rows"][label] = {}
        for budget in grid.budgets:
            cell = found["rows"][label][str(budget)] = []
            for seed in grid.seeds:
                path = run_folder(runs, grid.config, grid.run(overrides, budget, seed)) / METRICS
                if path.is_file():
                    cell.append({"seed": seed, **json.loads(path.read_text())})
    return found


def report(results: dict[str, Any]) -> str:
    """A Markdown table for each test set: mean IoU / mean IoU of the rarest classes, in percent."""
    cells = [cell for row in results["rows"].values() for runs in row.values() for cell in runs]
    if not cells:
        return f"# {results['title']}\n\nNo run is finished.\n"
    budgets = list(next(iter(results["rows"].values())))
    lines = [
        f"# {results['title']}",
        "",
        f"Mean IoU / mean IoU of the {_RARE} classes with the fewest test pixels, in percent; mean ± standard "
        "deviation over the seeds, whose number stands in brackets. One seed says little about differences of a point "
        "or two.",
    ]
    for test, entry in cells[0]["scores"].items():
        main = next(iter(entry["mean_iou"]))
        lines += [
            "",
            f"## {test}, {main}",
            "",
            f"| | {' | '.join(f'{budget} labels' for budget in budgets)} |",
        ]
        lines.append(f"|---|{'---|' * len(budgets)}")
        for label, row in results["rows"].items():
            lines.append(f"| {label} | {' | '.join(_cell(runs, test, main) for runs in row.values())} |")
    return "\n".join(lines) + "\n"


def _cell(runs: Sequence[dict[str, Any]], test: str, main: str) -> str:
    if not runs:
        return "–"
    entries = [run["scores"][test] for run in runs]
    overall = _spread([entry["mean_iou"][main] for entry in entries])
    return f"{overall} / {_spread([_rare(entry) for entry in entries])} ({len(runs)})"


def _rare(entry: dict[str, Any]) -> float:
    present = [c for c, pixels in enumerate(entry["pixels"]) if pixels]
    return mean(entry["iou"][c] for c in sorted(present, key=lambda c: entry["pixels"][c])[:_RARE])


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{deviation}"


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
        run(grid, given)
        return
    results = collect(grid, given.runs)
    content = {f"{grid.name}.json": json.dumps(results, indent=1) + "\n", f"{grid.name}.md": report(results)}
    for name, text in content.items():
        write_atomically(given.out / name, lambda path, text=text: path.write_text(text))  # type: ignore[misc]
    print(content[f"{grid.name}.md"])


if __name__ == "__main__":
    main()
