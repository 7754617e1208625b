"""Many runs of one configuration, and their table: rows of overrides times seeds.

Finished runs are kept and shared between grids; processes that run other `--seeds` or `--rows` of one grid may work
side by side, and a run that was stopped goes on. A report is GRID.json and GRID.md, from the finished runs, with the
paper's numbers of `published.toml`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from examples.common.config import read_named
from examples.common.outcome import finished_run
from examples.common.published import NONE, Table, read_published
from examples.common.scoring import RARE, rare_mean
from examples.common.training import write_json, write_text
from examples.hvl.config import Config, load_config
from examples.hvl.tables import Run, overall, paper_sections, spread

GRIDS = Path(__file__).parent / "grids"
PUBLISHED = Path(__file__).with_name("published.toml")
_ONE = "†"  # marks a cell of one seed


@dataclass(frozen=True)
class Grid:
    """Rows × seeds."""

    name: str
    title: str
    config: str
    seeds: tuple[int, ...]
    rows: Mapping[str, tuple[str, ...]]  # label: overrides
    published: tuple[str, ...] = ()  # tables of published.toml
    column: str = "mIoU"  # theirs that our means stand at

    def run(self, label: str, seed: int) -> Config:
        """The configuration of one run."""
        return load_config(self.config, [f"training.seed={seed}", *self.rows[label]])


def load_grid(name: str) -> Grid:
    """A grid by path, or by the name of a file in `examples/hvl/grids`.

    Raises:
        FileNotFoundError: no such file; the message lists those there are.
        ValueError: a key is missing, or an override does not fit the configuration.
    """
    path, content = read_named(name, GRIDS, "grid")
    try:
        rows = {row["label"]: tuple(row["set"]) for row in content["row"]}
        seeds, published = tuple(content["seeds"]), tuple(content.get("published", ()))
        column = content.get("column", "mIoU")
        grid = Grid(path.stem, content["title"], content["config"], seeds, rows, published, column)
    except KeyError as error:
        raise ValueError(f"{path} lacks the key {error}") from error
    for label in rows:
        grid.run(label, grid.seeds[0])
    return grid


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of a grid's command line."""
    parser.add_argument("--rows", type=int, nargs="*", help="of the grid's rows, counted from 0")


def runs(given: argparse.Namespace) -> Iterator[tuple[str, str, Config]]:
    """What a command line asks for, seed by seed: what it is, its configuration's name, and the configuration."""
    grid = load_grid(given.grid)
    labels = list(grid.rows)
    for seed in given.seeds or grid.seeds:
        for label in [labels[i] for i in given.rows] if given.rows else labels:
            yield f"{label}, seed {seed}", grid.config, grid.run(label, seed)


def page(given: argparse.Namespace) -> str:
    """Write the report that a command line asks for."""
    return write_report(load_grid(given.grid), given.runs, given.out)


def collect(grid: Grid, runs: Path) -> dict[str, Any]:
    """The finished runs as plain data: {"rows": {label: [run]}} and what the grid says of itself."""
    rows: dict[str, list[Run]] = {}
    for label in grid.rows:
        rows[label] = []
        for seed in grid.seeds:
            config = grid.run(label, seed)
            if metrics := finished_run(runs, grid.config, config):
                recipe = {"steps": metrics["steps"], "batch_size": config.data.batch_size}
                rows[label].append({"seed": seed, "recipe": recipe, **metrics})
    kind = grid.run(next(iter(grid.rows)), grid.seeds[0]).data.kind
    shown = {"published": list(grid.published), "column": grid.column}
    return {"title": grid.title, "kind": kind, **shown, "rows": rows}


def report(results: Mapping[str, Any], published: Mapping[str, Table]) -> str:
    """The page in Markdown; without runs it has the paper's tables alone."""
    runs = [run for row in results["rows"].values() for run in row]
    lines = [f"# {results['title']}", ""]
    if not runs:
        return "\n".join([*lines, "No run is finished.", *paper_sections(results, published, "", ""), ""])
    hours = sum(run["seconds"] for run in runs) / 3600
    lines += [
        f"Mean IoU / mean IoU of the {RARE} classes with the fewest test pixels, in percent; mean ± standard deviation "
        f"over the seeds, whose number stands in brackets ({_ONE}: one seed, whose deviation nobody knows). "
        "Differences of a point or two between cells of a few seeds say little.",
        "",
        f"Runs: {len(runs)}; labels: {_distinct(runs, 'labelled')}; steps: {_recipe(runs, 'steps')}; batch: "
        f"{_recipe(runs, 'batch_size')} of each stream; {hours:.2f} hours of training in all; "
        f"device: {_distinct(runs, 'device')}; threads: {_distinct(runs, 'threads')}; commit: "
        f"{_distinct(runs, 'commit')}.",
    ]
    for test, entry in runs[0]["scores"].items():
        main = next(iter(entry["mean_iou"]))
        lines += ["", f"## {test}, {main}", "", f"| | {main} / rarest {RARE} |", "| --- | --- |"]
        lines += [f"| {label} | {_cell(row, test, main)} |" for label, row in results["rows"].items()]
        lines += paper_sections(results, published, test, main)
        lines += ["", f"## IoU of each class on {test}", "", *_class_table(results["rows"], test)]
    return "\n".join(lines) + "\n"


def _cell(runs: Sequence[Run], test: str, main: str) -> str:
    if not runs:
        return NONE
    rare = spread([rare_mean(run["scores"][test]) for run in runs])
    return f"{overall(runs, test, main)} / {rare} ({_seeds(runs)})"


def _class_table(rows: Mapping[str, Sequence[Run]], test: str) -> list[str]:
    first = next(run for row in rows.values() for run in row)
    pixels = first["scores"][test]["pixels"]
    order = sorted((c for c, count in enumerate(pixels) if count), key=lambda c: pixels[c])
    names = [first["classes"][c].replace("_", " ") for c in order]
    heads = ["", *(f"{n} ({100 * pixels[c] / sum(pixels):.2g} %)" for n, c in zip(names, order, strict=True))]
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads))]
    for label, runs in rows.items():
        if runs:
            values = [mean(run["scores"][test]["iou"][c] for run in runs) for c in order]
            cells = [f"{label} ({_seeds(runs)})", *(f"{100 * value:.1f}" for value in values)]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _seeds(runs: Sequence[Run]) -> str:
    return f"{len(runs)}{_ONE if len(runs) == 1 else ''}"


def _distinct(runs: Sequence[Run], key: str) -> str:
    return ", ".join(map(str, sorted({run[key] for run in runs})))


def _recipe(runs: Sequence[Run], key: str) -> str:
    return ", ".join(map(str, sorted({run["recipe"][key] for run in runs})))


def write_report(grid: Grid, runs: Path, out: Path) -> str:
    """Write `OUT/GRID.json` and `OUT/GRID.md` from the finished runs; return the page."""
    results = collect(grid, runs)
    text = report(results, read_published(PUBLISHED))
    write_json(out / f"{grid.name}.json", results)
    write_text(out / f"{grid.name}.md", text)
    return text
