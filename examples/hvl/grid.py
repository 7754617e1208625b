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
from typing import Any

from examples.common.cells import ONE, Run, class_heads, of_classes, overall_and_rare, seeds
from examples.common.config import read_named
from examples.common.markdown import distinct, markdown_table
from examples.common.outcome import finished_run
from examples.common.published import Table, read_published
from examples.common.scoring import RARE, by_rarity
from examples.common.training import write_json, write_text
from examples.hvl.config import Config, load_config
from examples.hvl.tables import paper_sections

GRIDS = Path(__file__).parent / "grids"
PUBLISHED = Path(__file__).with_name("published.toml")


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
    """A grid by path, or by the name of a file in `examples/hvl/grids`. `rows_of` takes another one's rows.

    Raises:
        FileNotFoundError: no such file; the message lists those there are.
        ValueError: a key is missing, or an override does not fit the configuration.
    """
    path, content = read_named(name, GRIDS, "grid")
    try:
        parts = read_named(content["rows_of"], path.parent, "grid")[1] if "rows_of" in content else content
        rows = {row["label"]: tuple(row["set"]) for row in parts["row"]}
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

    def of(key: str) -> str:
        return distinct(run[key] for run in runs)

    hours = sum(run["seconds"] for run in runs) / 3600
    lines += [
        f"Mean IoU / mean IoU of the {RARE} classes with the fewest test pixels, in percent; mean ± standard deviation "
        f"over the seeds, whose number stands in brackets ({ONE}: one seed, whose deviation nobody knows). "
        "Differences of a point or two between cells of a few seeds say little.",
        "",
        f"Runs: {len(runs)}; labels: {of('labelled')}; steps: {_recipe(runs, 'steps')}; batch: "
        f"{_recipe(runs, 'batch_size')} of each stream; {hours:.2f} hours of training in all; "
        f"device: {of('device')}; threads: {of('threads')}; commit: "
        f"{of('commit')}.",
    ]
    for test, entry in runs[0]["scores"].items():
        main = next(iter(entry["mean_iou"]))
        lines += ["", f"## {test}, {main}", "", f"| | {main} / rarest {RARE} |", "| --- | --- |"]
        lines += [
            f"| {label} | {overall_and_rare(row, test, main)} |" for label, row in results["rows"].items()
        ]
        lines += paper_sections(results, published, test, main)
        lines += ["", f"## IoU of each class on {test}", "", *_class_table(results["rows"], test)]
    return "\n".join(lines) + "\n"


def _class_table(rows: Mapping[str, Sequence[Run]], test: str) -> list[str]:
    first = next(run for row in rows.values() for run in row)
    order = by_rarity(first["scores"][test]["pixels"])
    lines = [
        [f"{label} ({seeds(runs)})", *of_classes(runs, test, order)] for label, runs in rows.items() if runs
    ]
    return markdown_table(["", *class_heads(first, test, order)], lines)


def _recipe(runs: Sequence[Run], key: str) -> str:
    return distinct(run["recipe"][key] for run in runs)


def write_report(grid: Grid, runs: Path, out: Path) -> str:
    """Write `OUT/GRID.json` and `OUT/GRID.md` from the finished runs; return the page."""
    results = collect(grid, runs)
    text = report(results, read_published(PUBLISHED))
    write_json(out / f"{grid.name}.json", results)
    write_text(out / f"{grid.name}.md", text)
    return text
