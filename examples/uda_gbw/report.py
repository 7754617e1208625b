"""A grid's page: our table with the paper's numbers beside it, class weights, the IoU of each class, and the cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from examples.common.markdown import distinct, markdown_table, spread
from examples.common.published import NONE, Table, beside, read_published
from examples.common.scoring import RARE, by_rarity, rare_mean
from examples.common.training import write_atomically
from examples.uda_gbw.collect import (
    Run,
    all_runs,
    collect,
    gains,
    tests,
    weight_ranges,
)
from examples.uda_gbw.grid import Grid
from examples.uda_gbw.plots import write_plots

PUBLISHED = Path(__file__).with_name("published.toml")
_ONE = "†"  # marks a cell of one seed


def write_report(grid: Grid, runs: Path, out: Path) -> str:
    """Write `OUT/GRID.json`, `OUT/GRID.md` and `OUT/plots/GRID_*.png` from the finished runs; return the page."""
    results = collect(grid, runs)
    content = json.dumps(results) + "\n"
    write_atomically(out / f"{grid.name}.json", lambda path: path.write_text(content))
    page = report(results, read_published(PUBLISHED))
    for plot, title in write_plots(results, out / "plots", grid.name).items():
        page += f"\n![{title}](plots/{plot})\n"
    write_atomically(out / f"{grid.name}.md", lambda path: path.write_text(page))
    return page


def report(results: Mapping[str, Any], published: Mapping[str, Table]) -> str:
    """The page in Markdown, without its plots; without runs it has the paper's tables alone."""
    runs = all_runs(results)
    lines = [f"# {results['title']}", ""]
    lines += [_reading(), "", _recipe(runs)] if runs else ["No run is finished."]
    found = tests(results)
    for test, main in found:
        lines += ["", f"## {test}, {main}", "", *_main_table(results, test, main)]
    lines += _beside(results, published)
    if runs:
        lines += ["", "## Class weights", "", _weights_reading(), "", *_weight_table(results)]
    for test, _ in found:
        lines += ["", f"## IoU of each class on {test}", "", *_class_table(results, test)]
    return "\n".join(lines) + "\n"


def _reading() -> str:
    return (
        f"Mean IoU / mean IoU of the {RARE} classes with the fewest test pixels, in percent; mean ± standard deviation "
        f"over the seeds, whose number stands in brackets. {_ONE} marks a cell of one seed, whose deviation nobody "
        "knows. Differences of a point or two between cells of a few seeds say little."
    )


def _recipe(runs: Sequence[Run]) -> str:
    size = distinct("×".join(map(str, run["image_size"])) for run in runs)
    once = {run["run"]: run["seconds"] for run in runs}
    batch = distinct(run["recipe"]["batch_size"] for run in runs)
    return (
        f"Runs: {len(once)}, of {distinct(run['recipe']['steps'] for run in runs)} steps; batch {batch} of source and "
        f"of target; training crops (height×width): {size}; seeds {distinct(run['seed'] for run in runs)}; "
        f"{sum(once.values()) / 3600:.2f} hours of training in all. Device: {distinct(run['device'] for run in runs)}; "
        f"threads: {distinct(run['threads'] for run in runs)}; processes: {distinct(run['ranks'] for run in runs)}; "
        f"commit: {distinct(run['commit'] for run in runs)}. Each run's scores, class weights and versions are in the "
        "JSON file beside this page."
    )


def _main_table(results: Mapping[str, Any], test: str, main: str) -> list[str]:
    variants = list(next(iter(results["rows"].values())))
    rows = []
    for label, row in results["rows"].items():
        cells = [label, *(_cell(runs, test, main) for runs in row.values())]
        if len(variants) == 2:
            found = gains(results, label, test, main)
            cells.append(f"{spread(found)} ({_seeds(found)})" if found else NONE)
        rows.append(cells)
    return markdown_table(["", *variants, *(["difference"] if len(variants) == 2 else [])], rows)


def _beside(results: Mapping[str, Any], published: Mapping[str, Table]) -> list[str]:
    """The paper's tables; our means are in those that have a row of ours."""
    test, main = (tests(results) or [("", "")])[0]
    variants = list(next(iter(results["rows"].values())))
    ours = {
        label: [_overall(runs, test, main) for runs in row.values()] for label, row in results["rows"].items()
    }
    names = results["paper_rows"]
    lines = []
    for table in (published[key] for key in results["published"]):
        if {names.get(label, label) for label in ours} & {*table.rows} and table.data:
            same = table.data == results["kind"]
            lines += ["", *beside(table, variants, ours, same=same, names=names)]
        else:
            lines += ["", *beside(table, (), {}, same=True)]
    return lines


def _weights_reading() -> str:
    return (
        "The least and the greatest weight that a class had in a logged step, over all losses and seeds; and the mean "
        "distance of the weights from 1. A loss without weights has 1 everywhere."
    )


def _weight_table(results: Mapping[str, Any]) -> list[str]:
    rows = []
    for label, row in results["rows"].items():
        for variant, runs in row.items():
            if runs:
                least, far, most = _extent(runs)
                rows.append([label, variant, f"{least:.4f}", f"{most:.4f}", f"{far:.4f}"])
    return markdown_table(["", "", "least", "greatest", "mean distance from 1"], rows)


def _extent(runs: Sequence[Run]) -> tuple[float, float, float]:
    ranges = [classes for run in runs for classes in weight_ranges(run).values()]
    least = min(low for classes in ranges for low, _, _ in classes)
    most = max(high for classes in ranges for _, _, high in classes)
    steps = [row for run in runs for history in run["class_weights"].values() for row in history["weights"]]
    return least, mean(abs(value - 1) for row in steps for value in row), most


def _class_table(results: Mapping[str, Any], test: str) -> list[str]:
    first = all_runs(results)[0]
    pixels = first["scores"][test]["pixels"]
    order = by_rarity(pixels)
    heads = [
        f"{first['classes'][c].replace('_', ' ')} ({100 * pixels[c] / sum(pixels):.2g} %)" for c in order
    ]
    rows = []
    for label, row in results["rows"].items():
        for variant, runs in row.items():
            if runs:
                values = [mean(run["scores"][test]["iou"][c] for run in runs) for c in order]
                cells = (f"{100 * value:.1f}" for value in values)
                rows.append([label, f"{variant} ({_seeds(runs)})", *cells])
    return markdown_table(["", "", *heads], rows)


def _cell(runs: Sequence[Run], test: str, main: str) -> str:
    if not runs:
        return NONE
    rare = spread([rare_mean(run["scores"][test]) for run in runs])
    return f"{_overall(runs, test, main)} / {rare} ({_seeds(runs)})"


def _overall(runs: Sequence[Run], test: str, main: str) -> str:
    return spread([run["scores"][test]["mean_iou"][main] for run in runs]) if runs else NONE


def _seeds(values: Sequence[Any]) -> str:
    return f"{len(values)}{_ONE if len(values) == 1 else ''}"
