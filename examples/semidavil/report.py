"""A grid's page: our table with the paper's numbers beside it, the IoU of each class, and what it took."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from examples.common.markdown import distinct, markdown_table, spread
from examples.common.scoring import RARE, by_rarity, rare_mean
from examples.common.training import write_atomically
from examples.semidavil.collect import Run, all_runs, collect, shares, tests
from examples.semidavil.grid import Grid
from examples.semidavil.plots import write_plots
from examples.semidavil.published import Published, read_published

_ONE = "†"  # marks a cell of one seed


def write_report(grid: Grid, runs: Path, out: Path) -> str:
    """Write `OUT/GRID.json`, `OUT/GRID.md` and `OUT/plots/GRID_*.png` from the finished runs; return the page."""
    results = collect(grid, runs)
    name, content = grid.name, json.dumps(results, indent=1) + "\n"
    write_atomically(out / f"{name}.json", lambda path: path.write_text(content))
    page = report(results, read_published())
    for plot, title in write_plots(results, out / "plots", name).items():
        page += f"\n![{title}](plots/{plot})\n"
    write_atomically(out / f"{name}.md", lambda path: path.write_text(page))
    return page


def report(results: Mapping[str, Any], published: Published) -> str:
    """The page in Markdown, without its plots."""
    if not all_runs(results):
        return f"# {results['title']}\n\nNo run is finished.\n"
    lines = [f"# {results['title']}", "", _reading(), "", _recipe(all_runs(results))]
    for test, means in tests(results).items():
        for name in means:
            lines += ["", f"## {test}, {name}", "", *_main_table(results, test, name, published)]
    lines += _confident_table(results)
    lines += ["", "## Beside the paper", "", *_beside(results, published)]
    for test in tests(results):
        for budget in next(iter(results["rows"].values())):
            lines += ["", f"## IoU of each class on {test}, {budget} labels", ""]
            lines += _class_table(results, test, budget)
    return "\n".join(lines) + "\n"


def _reading() -> str:
    return (
        f"Mean IoU / mean IoU of the {RARE} classes with the fewest test pixels, in percent; mean ± standard deviation "
        f"over the seeds, whose number stands in brackets. {_ONE} marks a cell of one seed, whose deviation nobody "
        "knows. Differences of a point or two between cells of a few seeds say little."
    )


def _recipe(runs: Sequence[Run]) -> str:
    """What was run, on what, for how long; several values where the runs differ."""

    def of(key: str) -> str:
        return distinct(run["recipe"][key] for run in runs)

    def recorded(key: str) -> str:
        return distinct(run.get(key) for run in runs)

    size = distinct("×".join(map(str, run["image_size"])) for run in runs if "image_size" in run)
    timed = [run["seconds"] for run in runs if "seconds" in run]
    hours = f"{sum(timed) / 3600:.2f} hours of training in all" if timed else "hours not recorded"
    if timed and len(timed) < len(runs):
        hours += f" for the {len(timed)} of them that recorded it"
    return (
        f"Runs: {len(runs)}, of {of('steps')} steps; batch {of('batch_size')} of each stream, pieces a step: "
        f"{of('accumulation')}; size of the training images (height×width): {size}; seeds {recorded('seed')}; {hours}. "
        f"Device: {recorded('device')}; threads: {recorded('threads')}; processes: {recorded('ranks')}; commit: "
        f"{recorded('commit')}. Each run's scores, versions and peak memory are in the JSON file beside this page."
    )


def _main_table(results: Mapping[str, Any], test: str, main: str, published: Published) -> list[str]:
    budgets = list(next(iter(results["rows"].values())))
    labels = published.labels(results["paper_rows"])
    heads = [f"{budget} labels" for budget in budgets]
    mark = "paper" if results["kind"] == published.kind else "paper, another data set"
    heads += [f"{mark}: {number} labels" for number in labels]
    rows = []
    for label, row in results["rows"].items():
        ours = [_cell(runs, test, main) for runs in row.values()]
        rows.append([label, *ours, *published.cells(results["paper_rows"].get(label), labels)])
    return markdown_table(["", *heads], rows)


def _beside(results: Mapping[str, Any], published: Published) -> list[str]:
    """What the paper prints of this, and why it is not to be compared in level."""
    named = f" ({results['paper']})" if results["paper"] else ""
    if not published.labels(results["paper_rows"]):
        return [f"The paper's numbers{named} are not at hand."]
    other = ": another data set, not comparable in level. What may be compared is the order of rows"
    lines = [
        f"The paper's columns{named} are {published.setting}{'' if results['kind'] == published.kind else other}. "
        '"not at hand": `published.toml` does not have that number. What is known of the paper\'s figures:',
        "",
    ]
    return lines + [f"- {name}: {note}" for name, note in published.notes.items()]


def _confident_table(results: Mapping[str, Any]) -> list[str]:
    """How much equation 4 had to say; nothing where no run logged it."""
    if not any("confident" in run for run in all_runs(results)):
        return []
    budgets = list(next(iter(results["rows"].values())))
    rows = []
    for label, row in results["rows"].items():
        known = [[100 * run["confident"] for run in runs if "confident" in run] for runs in row.values()]
        rows.append([label, *(f"{mean(values):.2f}" if values else "–" for values in known)])
    head = (
        "Pixels of the unlabelled images that passed the threshold of equation 4, in percent: the mean over the logged "
        "steps and the seeds. At 0 consistency training did nothing. –: it was off, or not recorded."
    )
    table = markdown_table(["", *(f"{budget} labels" for budget in budgets)], rows)
    return ["", "## Confident pixels", "", head, "", *table]


def _class_table(results: Mapping[str, Any], test: str, budget: str) -> list[str]:
    share = shares(results, test)
    order = by_rarity(all_runs(results)[0]["scores"][test]["pixels"])
    classes = all_runs(results)[0]["classes"]
    heads = [f"{classes[c].replace('_', ' ')} ({100 * share[c]:.2g} %)" for c in order]
    rows = []
    for label, row in results["rows"].items():
        runs = row[budget]
        if runs:
            values = [mean(run["scores"][test]["iou"][c] for run in runs) for c in order]
            rows.append([f"{label} ({_seeds(runs)})", *(f"{100 * value:.1f}" for value in values)])
    return markdown_table(["", *heads], rows) if rows else ["No run is finished."]


def _cell(runs: Sequence[Run], test: str, main: str) -> str:
    if not runs:
        return "–"
    entries = [run["scores"][test] for run in runs]
    overall = spread([entry["mean_iou"][main] for entry in entries])
    return f"{overall} / {spread([rare_mean(entry) for entry in entries])} ({_seeds(runs)})"


def _seeds(runs: Sequence[Run]) -> str:
    return f"{len(runs)}{_ONE if len(runs) == 1 else ''}"
