"""A grid's page: our table with the paper's numbers beside it, class weights, each class's IoU and recall, the cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from examples.common.cells import ONE, class_heads, of_classes, overall, overall_and_rare, seeds
from examples.common.markdown import distinct, markdown_table, spread
from examples.common.published import NONE, Table, beside, read_published
from examples.common.scoring import RARE, by_rarity
from examples.common.training import write_json, write_text
from examples.uda_gbw.collect import (
    Run,
    all_runs,
    collect,
    gains,
    tests,
    weight_ranges,
)
from examples.uda_gbw.gains import Comparison, comparisons
from examples.uda_gbw.grid import Grid
from examples.uda_gbw.plots import write_plots

PUBLISHED = Path(__file__).with_name("published.toml")


def write_report(grid: Grid, runs: Path, out: Path) -> str:
    """Write `OUT/GRID.json`, `OUT/GRID.md` and `OUT/plots/GRID_*.png` from the finished runs; return the page."""
    results = collect(grid, runs)
    write_json(out / f"{grid.name}.json", results, indent=None)
    page = report(results, read_published(PUBLISHED))
    for plot, title in write_plots(results, out / "plots", grid.name).items():
        page += f"\n![{title}](plots/{plot})\n"
    write_text(out / f"{grid.name}.md", page)
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
    compared = list(comparisons(results))
    for test, _ in found:
        for score, name in {"iou": "IoU", "recall": "Recall"}.items():
            lines += ["", f"## {name} of each class on {test}", "", *_class_table(results, test, score)]
            if compared:
                lines += ["", _gain_reading(name), "", *_gain_table(compared, test, score)]
    return "\n".join(lines) + "\n"


def _reading() -> str:
    return (
        f"Mean IoU / mean IoU of the {RARE} classes with the fewest test pixels / mean recall, in percent; mean ± "
        f"standard deviation over the seeds, whose number stands in brackets. {ONE} marks a cell of one seed, whose "
        "deviation nobody knows. Differences of a point or two between cells of a few seeds say little."
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
            cells.append(f"{spread(found)} ({seeds(found)})" if found else NONE)
        rows.append(cells)
    return markdown_table(["", *variants, *(["difference"] if len(variants) == 2 else [])], rows)


def _beside(results: Mapping[str, Any], published: Mapping[str, Table]) -> list[str]:
    """The paper's tables; our means are in those that have a row of ours."""
    test, main = (tests(results) or [("", "")])[0]
    variants = list(next(iter(results["rows"].values())))
    ours = {
        label: [overall(runs, test, main) for runs in row.values()] for label, row in results["rows"].items()
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


def _class_table(results: Mapping[str, Any], test: str, score: str) -> list[str]:
    first = all_runs(results)[0]
    order = by_rarity(first["scores"][test]["pixels"])
    rows = []
    for label, row in results["rows"].items():
        for variant, runs in row.items():
            if runs:
                rows.append([label, f"{variant} ({seeds(runs)})", *of_classes(runs, test, order, score)])
    return markdown_table(["", "", *class_heads(first, test, order)], rows)


def _gain_reading(name: str) -> str:
    return (
        f"{name} gained, in points, the mean over the seeds that both have; and how many classes gain, of those that "
        "source and test set share."
    )


def _gain_table(compared: Sequence[Comparison], test: str, score: str) -> list[str]:
    first = compared[0]
    order = first.order(test)
    rows = []
    for one in compared:
        gains = one.gains(test, score)
        risen = f"{sum(value > 0 for value in gains.values())} of {len(gains)}"
        label = f"{one.title} ({seeds(one.pairs)})"
        rows.append([label, risen, *(f"{100 * gains[c]:+.1f}" for c in order)])
    return markdown_table(["", "gain", *class_heads(first.pairs[0][0], test, order)], rows)


def _cell(runs: Sequence[Run], test: str, main: str) -> str:
    recall = [run["scores"][test]["mean_recall"][main] for run in runs]
    return overall_and_rare(runs, test, main, *([spread(recall)] if runs else []))
