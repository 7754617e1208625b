"""A grid's page: our table with the paper's numbers beside it, the IoU of each class, and what it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from statistics import mean
from typing import Any

from examples.common.cells import ONE, class_heads, of_classes, overall, overall_and_rare, seeds
from examples.common.markdown import distinct, markdown_table
from examples.common.published import Table, beside, read_published, remarks
from examples.common.scoring import RARE, by_rarity
from examples.common.training import write_json, write_text
from examples.semidavil.collect import CONFIDENT, Run, all_runs, class_gain, collect, paired, tests
from examples.semidavil.grid import Grid
from examples.semidavil.plots import write_plots

PUBLISHED = Path(__file__).with_name("published.toml")
_PARTS = 5  # of training, in the table of confident pixels by step


def write_report(grid: Grid, runs: Path, out: Path) -> str:
    """Write `OUT/GRID.json`, `OUT/GRID.md` and `OUT/plots/GRID_*.png` from the finished runs; return the page."""
    results = collect(grid, runs)
    write_json(out / f"{grid.name}.json", results)
    page = report(results, read_published(PUBLISHED))
    for plot, title in write_plots(results, out / "plots", grid.name).items():
        page += f"\n![{title}](plots/{plot})\n"
    write_text(out / f"{grid.name}.md", page)
    return page


def report(results: Mapping[str, Any], published: Mapping[str, Table]) -> str:
    """The page in Markdown, without its plots; without runs it has the paper's tables alone."""
    runs = all_runs(results)
    lines = [f"# {results['title']}", "", *([results["note"], ""] if results["note"] else [])]
    lines += [_reading(), "", _recipe(runs)] if runs else ["No run is finished."]
    for test, means in tests(results).items():
        for name in means:
            lines += ["", f"## {test}, {name}", "", *_main_table(results, test, name)]
    lines += [*_beside(results, published), *_confident_table(results)]
    for test, means in tests(results).items():
        for budget in next(iter(results["rows"].values())):
            lines += ["", f"## IoU of each class on {test}, {budget} labels", ""]
            table = published.get(results["published_classes"].get(budget, ""))
            lines += _class_table(results, test, means[0], budget, table)
    return "\n".join(lines) + "\n"


def _reading() -> str:
    return (
        f"Mean IoU / mean IoU of the {RARE} classes with the fewest test pixels, in percent; mean ± standard deviation "
        f"over the seeds, whose number stands in brackets. {ONE} marks a cell of one seed, whose deviation nobody "
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


def _main_table(results: Mapping[str, Any], test: str, main: str) -> list[str]:
    heads = [f"{budget} labels" for budget in next(iter(results["rows"].values()))]
    rows = [
        [label, *(overall_and_rare(runs, test, main) for runs in row.values())]
        for label, row in results["rows"].items()
    ]
    return markdown_table(["", *heads], rows)


def _beside(results: Mapping[str, Any], published: Mapping[str, Table]) -> list[str]:
    """The paper's tables with our means in them; those of each class stand here where no run has a table of classes."""
    test, means = next(iter(tests(results).items()), ("", [""]))
    heads = [f"{budget} labels" for budget in next(iter(results["rows"].values()))]
    ours = {
        label: [overall(runs, test, means[0]) for runs in row.values()]
        for label, row in results["rows"].items()
    }
    lines = []
    for key in results["published"]:
        same = published[key].data == results["kind"]
        lines += ["", *beside(published[key], heads, ours, same=same)]
    for key in results["published_classes"].values() if not test else ():
        lines += ["", *beside(published[key], (), {}, same=True)]
    return lines


def _confident_table(results: Mapping[str, Any]) -> list[str]:
    """How much equation 4 had to say; nothing where no run logged it."""
    if not any(CONFIDENT in run for run in all_runs(results)):
        return []
    budgets = list(next(iter(results["rows"].values())))
    rows = []
    for label, row in results["rows"].items():
        known = [[100 * run[CONFIDENT] for run in runs if CONFIDENT in run] for runs in row.values()]
        rows.append([label, *(f"{mean(values):.2f}" if values else "–" for values in known)])
    head = (
        "Pixels of the unlabelled images that passed the threshold of equation 4, in percent: the mean over the logged "
        "steps and the seeds. At 0 consistency training did nothing. –: it was off, or not recorded."
    )
    table = markdown_table(["", *(f"{budget} labels" for budget in budgets)], rows)
    return ["", "## Confident pixels", "", head, "", *table, *_confident_by_step(results)]


def _confident_by_step(results: Mapping[str, Any]) -> list[str]:
    """The same in each fifth of training: a threshold may let nothing pass at first, and much at the end."""
    rows = []
    for label, row in results["rows"].items():
        for budget, runs in row.items():
            known = [
                _by_parts(run["curves"][CONFIDENT]) for run in runs if CONFIDENT in run.get("curves", {})
            ]
            if known:
                parts = (f"{100 * mean(shares):.2f}" for shares in zip(*known, strict=True))
                rows.append([f"{label}, {budget} labels", *parts])
    heads = ["", *(f"{100 * k // _PARTS} to {100 * (k + 1) // _PARTS} %" for k in range(_PARTS))]
    return ["", "By how much of training was done:", "", *markdown_table(heads, rows)] if rows else []


def _by_parts(curve: Sequence[Sequence[float]]) -> list[float]:
    """A curve's mean within each of `_PARTS` equal parts of its steps; NaN in one without a logged step."""
    last = curve[-1][0]
    parts: list[list[float]] = [[] for _ in range(_PARTS)]
    for step, value in curve:
        parts[int((step - 1) * _PARTS // last)].append(value)
    return [mean(part) if part else nan for part in parts]


def _class_table(
    results: Mapping[str, Any], test: str, main: str, budget: str, table: Table | None
) -> list[str]:
    """Our rows, what DyCE adds, and the paper's rows where it prints them for this number of labels."""
    first = all_runs(results)[0]
    order = by_rarity(first["scores"][test]["pixels"])
    classes = [name.replace("_", " ") for name in first["classes"]]
    rows = []
    for label, row in results["rows"].items():
        runs = row[budget]
        if runs:
            cells = [overall(runs, test, main), *of_classes(runs, test, order)]
            rows.append([f"{label} ({seeds(runs)})", *cells])
    if pairs := paired(results).get(budget):
        base, other = results["compare"]
        gains = [mean(class_gain(pair, test, c) for pair in pairs) for c in order]
        rows.append([f"{other} less {base}", "", *(f"{gain:+.1f}" for gain in gains)])
    if table is not None:
        rows += [[f"paper, {n}", *(table.cell(n, c) for c in _columns(classes, order))] for n in table.rows]
    if not rows:
        return ["No run is finished."]
    heads = ["", main, *class_heads(first, test, order)]
    named = [f"The paper's rows are {table.name}: {table.setting}.", ""] if table is not None else []
    return [*named, *markdown_table(heads, rows), *(remarks(table) if table is not None else [])]


def _columns(classes: Sequence[str], order: Sequence[int]) -> list[str]:
    """The paper's names of the columns of a table of classes."""
    return ["mIoU", *(classes[c] for c in order)]
