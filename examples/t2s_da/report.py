"""A grid's page from its finished runs: scores, differences to the first row, each class, CCD and PDD, and a plot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from examples.common.cells import ONE, Run, class_heads, seeds
from examples.common.markdown import distinct, markdown_table
from examples.common.outcome import finished_run
from examples.common.published import NONE, Table, above, beside, read_published
from examples.common.scoring import RARE, by_rarity, rare_mean
from examples.common.training import write_json, write_text
from examples.t2s_da.grid import Grid
from examples.t2s_da.plots import plot_means, plot_similarity

Rows = Mapping[str, Sequence[Run]]
PUBLISHED = Path(__file__).with_name("published.toml")
_SIMILARITY = (
    "Cosine of a class's mean features on both domains, times 100: the bars of the paper's Figure 1, whose lines are "
    "the IoU above."
)
_TAIL = "mIoU of tail classes"  # Table 9's
_ON_SOURCE = "table17"


def collect(grid: Grid, runs: Path) -> dict[str, list[Run]]:
    """The finished runs of each row: everything in `metrics.json`, the seed and the number of steps."""
    found: dict[str, list[Run]] = {}
    for label, overrides in grid.rows:
        found[label] = []
        for seed in grid.seeds:
            config = grid.run(overrides, seed)
            if metrics := finished_run(runs, grid.config, config):
                found[label].append({"seed": seed, "steps": config.training.iterations, **metrics})
    return found


def write_report(grid: Grid, runs: Path, out: Path) -> str:
    """Write `OUT/GRID.json`, `OUT/GRID.md` and `OUT/plots/GRID_SET.png`; return the page."""
    rows = collect(grid, runs)
    write_json(out / f"{grid.name}.json", {"title": grid.title, "paper": grid.paper, "rows": rows})
    page = report(grid, rows, read_published(PUBLISHED))
    for test in _tests(rows):
        name = f"{grid.name}_{test}.png"
        means = {label: [100 * _main(run, test) for run in runs] for label, runs in rows.items()}
        plot_means(f"{grid.title}, {test}", means, out / "plots" / name)
        page += f"\n![mean IoU of each row on {test}](plots/{name})\n"
        if _measured(rows, test):
            name = f"{grid.name}_{test}_similarity.png"
            plot_similarity(rows, test, out / "plots" / name)
            page += f"\n![similarity and IoU of each class on {test}](plots/{name})\n"
    write_text(out / f"{grid.name}.md", page)
    return page


def report(grid: Grid, rows: Rows, published: Mapping[str, Table]) -> str:
    """The page in Markdown, without its plots; without runs it has the paper's tables alone."""
    runs = [run for row in rows.values() for run in row]
    lines = [f"# {grid.title}", "", f"Laid out after {grid.paper}.", ""]
    lines += [_reading(), "", _recipe(runs)] if runs else ["No run is finished."]
    for test in _tests(rows):
        lines += ["", f"## {test}", "", *_scores(rows, test)]
    for key in grid.published:
        lines += ["", *_beside(grid, rows, key, published[key])]
    domains = [*_tests(rows), *(["source"] if any(run.get("source") for run in runs) else [])]
    for domain in domains:
        lines += ["", f"## IoU of each class on {domain}", "", *_classes(rows, partial(_iou, domain=domain))]
    for test in _tests(rows):
        if _measured(rows, test):
            lines += ["", f"## Similarity of each class's features, {test} and source", "", _SIMILARITY, ""]
            lines += _classes(rows, partial(_similarity, test=test))
    return "\n".join(lines) + "\n"


def _beside(grid: Grid, rows: Rows, key: str, table: Table) -> list[str]:
    """A printed table with those of our rows that it has."""
    test = next(iter(_tests(rows)), "")
    same = table.data == grid.run((), grid.seeds[0]).data.kind
    named = {label: place for label, place in grid.names[key].items() if label in rows}
    names = {label: row for label, (row, _) in named.items()}
    if "road" not in table.columns:
        heads = [
            head
            for head in table.columns
            if head == _TAIL or head in {column for _, column in named.values()}
        ]
        ours = {label: _cells(rows[label], test, column, heads) for label, (_, column) in named.items()}
        return beside(table, heads if test else [], ours if test else {}, same=same, names=names)
    of = "source" if key == _ON_SOURCE else test
    found = {label: _of_classes(rows[label], of) for label in names if same and rows[label]}
    return above(table, {label: cells for label, cells in found.items() if cells})


def _cells(runs: Sequence[Run], test: str, column: str, heads: Sequence[str]) -> list[str]:
    """A row's mIoU in its column, and the mean of the rarest classes where the paper has one of the tail's."""
    means = {column: _spread([100 * _main(run, test) for run in runs])}
    means[_TAIL] = _spread([100 * rare_mean(run["scores"][test]) for run in runs])
    return [means.get(head, NONE) for head in heads]


def _of_classes(runs: Sequence[Run], test: str) -> dict[str, str]:
    """The cells of a row of a table of classes, under the paper's names; none where nothing was scored."""
    entries = [entry for run in runs if (entry := _entry(run, test))]
    if not entries:
        return {}
    means = zip(*(entry["mean_iou"].values() for entry in entries), strict=True)
    cells = {
        name: _spread([100 * x for x in values])
        for name, values in zip(("mIoU", "mIoU*"), means, strict=False)
    }
    for number, name in enumerate(runs[0]["classes"]):
        values = [100 * entry["iou"][number] for entry in entries if entry["iou"][number] is not None]
        cells[name.replace("_", " ")] = _spread(values)
    return cells


def _entry(run: Run, domain: str) -> Mapping[str, Any] | None:
    """The scores on a test set, or on the source."""
    entry: Mapping[str, Any] | None = run.get("source") if domain == "source" else run["scores"][domain]
    return entry


def _reading() -> str:
    return (
        "In percent, mean ± standard deviation over the seeds, whose number stands in brackets; "
        f"{ONE} marks one seed, whose deviation nobody knows. “Rare” is the mean IoU of the {RARE} classes with the "
        "fewest test pixels. The difference is to the first row, over the seeds that both have. CCD: the spread of a "
        "class over its distance to the others, small is good; PDD: how much nearer a pixel is to its own class's "
        "centre, taken from 1: small is good, too. Differences within the deviations are none."
    )


def _recipe(runs: Sequence[Run]) -> str:
    def of(key: str) -> str:
        return distinct(run[key] for run in runs)

    crops = sorted({"×".join(map(str, run["crop"])) or "whole images" for run in runs})
    hours = sum(run["seconds"] for run in runs) / 3600
    return (
        f"Runs: {len(runs)}, of {of('steps')} steps; crops of {', '.join(crops)} (height×width); seeds {of('seed')}; "
        f"{hours:.2f} hours of training in all. Device: {of('device')}; threads: {of('threads')}; processes: "
        f"{of('ranks')}; commit: {of('commit')}."
    )


def _tests(rows: Rows) -> list[str]:
    return next((list(run["scores"]) for row in rows.values() for run in row), [])


def _main(run: Run, test: str) -> float:
    """The mean IoU over all classes."""
    value: float = next(iter(run["scores"][test]["mean_iou"].values()))
    return value


def _scores(rows: Rows, test: str) -> list[str]:
    base = {run["seed"]: run for run in next(iter(rows.values()))}
    lines = []
    for label, runs in rows.items():
        entries = [run["scores"][test] for run in runs]
        pairs = [_main(run, test) - _main(base[run["seed"]], test) for run in runs if run["seed"] in base]
        measured = [entry for entry in entries if "ccd" in entry]
        lines.append(
            [
                label,
                _spread([100 * _main(run, test) for run in runs]),
                _spread([100 * rare_mean(entry) for entry in entries]),
                _spread([100 * value for value in pairs], signed=True),
                _spread([entry["ccd"]["mean"] for entry in measured], digits=3),
                _spread([entry["pdd"]["mean"] for entry in measured], digits=4),
                f"({seeds(runs)})",
            ]
        )
    return markdown_table(["", "mIoU", "rare", "difference", "CCD", "PDD", "seeds"], lines)


def _classes(rows: Rows, value: Callable[[Run, int], float | None]) -> list[str]:
    """A value in per cent for each row and class, the classes by how rare they are in the first test set."""
    first = next(run for row in rows.values() for run in row)
    test = next(iter(first["scores"]))
    order = by_rarity(first["scores"][test]["pixels"])
    lines = []
    for label, runs in rows.items():
        if runs:
            found = [[x for run in runs if (x := value(run, c)) is not None] for c in order]
            lines.append([label, *(f"{100 * mean(values):.1f}" if values else NONE for values in found)])
    return markdown_table(["", *class_heads(first, test, order)], lines)


def _measured(rows: Rows, test: str) -> bool:
    return any("similarity" in run["scores"][test] for runs in rows.values() for run in runs)


def _iou(run: Run, number: int, domain: str) -> float | None:
    entry = _entry(run, domain)
    return None if entry is None else entry["iou"][number]


def _similarity(run: Run, number: int, test: str) -> float | None:
    """Figure 1's: the cosine of a class's mean features on both domains."""
    entry = run["scores"][test]
    return entry["similarity"]["classes"][number] if "similarity" in entry else None


def _spread(values: Sequence[float], *, digits: int = 1, signed: bool = False) -> str:
    if not values:
        return NONE
    sign = "+" if signed else ""
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.{digits}f}{deviation}"
