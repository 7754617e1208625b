"""Source only and EDAPS, each with cross-entropy and with GBW, over seeds: Table 3.

The grid is named by its configuration. A report is panoptic_CONFIG.json and panoptic_CONFIG.md, from the finished runs,
with the paper's numbers beside.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from examples.common.markdown import distinct, markdown_table, spread
from examples.common.outcome import finished_run
from examples.common.published import beside, read_published
from examples.common.scoring import by_rarity
from examples.common.training import write_json, write_text
from examples.uda_gbw.panoptic.config import CONFIGS, Config, load_config
from examples.uda_gbw.panoptic.labels import CATEGORIES, Categories

METHODS: Mapping[str, str] = {"source only": 'method="source_only"', "EDAPS": 'method="edaps"'}
LOSSES: Mapping[str, str] = {"cross-entropy": 'weighting.scheme="none"', "GBW": 'weighting.scheme="gbw"'}
ROWS: Mapping[str, tuple[str, str]] = {
    f"{method}, {loss}": (METHODS[method], LOSSES[loss]) for method, loss in product(METHODS, LOSSES)
}
PAPER = {"EDAPS, cross-entropy": "EDAPS", "EDAPS, GBW": "GBW (EDAPS)"}  # the rows of its Table 3
PUBLISHED = Path(__file__).parents[1] / "published.toml"
SEEDS = (0, 1, 2)
GRIDS = CONFIGS  # which name them
MEANS = ("mPQ", "mSQ", "mRQ")
Runs = Mapping[str, Sequence[Mapping[str, Any]]]


def config_of(name: str, row: str, seed: int, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a run; rows differ in the method and in the weights, and in nothing else."""
    return load_config(name, [*overrides, *ROWS[row], f"training.seed={seed}"])


def collect(name: str, runs: Path, seeds: Sequence[int], overrides: Sequence[str]) -> dict[str, list[Any]]:
    """The metrics of the finished runs, {row: [metrics]}."""
    found: dict[str, list[Any]] = {row: [] for row in ROWS}
    for row, entries in found.items():
        for seed in seeds:
            config = config_of(name, row, seed, overrides)
            if metrics := finished_run(runs, name, config):
                entries.append(metrics)
    return found


def report(found: Runs) -> str:
    """The page in Markdown.

    Raises:
        ValueError: no run is finished.
    """
    every = [run for runs in found.values() for run in runs]
    if not every:
        raise ValueError("no run is finished: carry them out with `grid`")
    kind = every[0]["config"]["data"]["kind"]
    categories = CATEGORIES[kind]
    lines = ["# Panoptic segmentation with adaptation: GBW in the semantic losses", "", _reading(kind), ""]
    lines.append(_recipe(every))
    for test in every[0]["scores"]:
        lines += ["", f"## Panoptic quality on {test}", "", *_quality_table(found, test)]
        lines += ["", *_beside(found, test, kind)]
        for name in ("PQ", "SQ", "RQ"):
            lines += [
                "",
                f"## {name} of each class on {test}",
                "",
                *_class_table(found, test, categories, name),
            ]
    lines += ["", "## Class weights", "", "The least and the greatest in a logged step, over all seeds.", ""]
    return "\n".join([*lines, *_weight_table(found, categories)]) + "\n"


def _reading(kind: str) -> str:
    streets = (
        "Source, target and test are generated streets of different scenes, the source by day, the other two in the "
        "evening; the target has no labels. " * (kind == "streets")
    )
    return (
        f"In percent, mean ± standard deviation over the seeds. {streets}The ceiling is what the post-processing makes "
        "of heads without any error. mIoU is that of the semantic head before the post-processing. Differences of a "
        "point or two between cells of a few seeds say little."
    )


def _recipe(runs: Sequence[Mapping[str, Any]]) -> str:
    data = [run["config"]["data"] for run in runs]
    training = [run["config"]["training"] for run in runs]
    return (
        f"Runs: {len(runs)}, of {distinct(one['iterations'] for one in training)} steps; "
        f"{distinct(one['batch_size'] for one in data)} images of source and of target a step; things of fewer than "
        f"{distinct(one['min_pixels'] for one in data)} pixels are no instances; seeds "
        f"{distinct(one['seed'] for one in training)}; "
        f"{sum(run['seconds'] for run in runs) / len(runs):.0f} seconds of training a run. Device: "
        f"{distinct(run['device'] for run in runs)}; threads: {distinct(run['threads'] for run in runs)}; commit: "
        f"{distinct(run['commit'] for run in runs)}. Each run's scores and configuration are in the JSON file beside "
        "this page."
    )


def _quality_table(found: Runs, test: str) -> list[str]:
    entries = {row: [run["scores"][test] for run in runs] for row, runs in found.items() if runs}
    ceiling = next(run for runs in found.values() for run in runs)["ceiling"][test]
    iou = next(iter(next(iter(entries.values()))[0]["mean_iou"]))
    rows = []
    for row, scores in entries.items():
        cells = [[*_qualities(one["panoptic"]), one["mean_iou"][iou]] for one in scores]
        rows.append([row, str(len(scores)), *map(spread, zip(*cells, strict=True))])
    rows.append(["ceiling", "–", *(spread([x]) for x in _qualities(ceiling)), "100.0"])
    return markdown_table(["", "seeds", *MEANS, "mPQ of things", "mPQ of stuff", iou], rows)


def _beside(found: Runs, test: str, kind: str) -> list[str]:
    ours = {}
    for row, runs in found.items():
        if runs:
            cells = [[run["scores"][test]["panoptic"]["all"][mean] for mean in MEANS] for run in runs]
            ours[row] = [spread(values) for values in zip(*cells, strict=True)]
    table = read_published(PUBLISHED)["table3"]
    return beside(table, MEANS, ours, same=kind == table.data, names=PAPER)


def _qualities(panoptic: Mapping[str, Mapping[str, float]]) -> list[float]:
    return [*(panoptic["all"][mean] for mean in MEANS), panoptic["things"]["mPQ"], panoptic["stuff"]["mPQ"]]


def _class_table(found: Runs, test: str, categories: Categories, quality: str) -> list[str]:
    pixels = next(run for runs in found.values() for run in runs)["scores"][test]["pixels"]
    order = by_rarity(pixels)
    heads = [f"{_title(categories, c)} ({100 * pixels[c] / sum(pixels):.2g} %)" for c in order]
    rows = []
    for row, runs in found.items():
        each = [run["scores"][test]["each"] for run in runs]
        if each:
            rows.append([row, *(_spread_of_class(each, categories.names[c], quality) for c in order)])
    return markdown_table(["", *heads], rows)


def _spread_of_class(each: Sequence[Mapping[str, Mapping[str, float]]], name: str, quality: str) -> str:
    """Of the runs in which the class occurs: one with too few pixels for an instance has no segment."""
    values = [one[name][quality] for one in each if name in one]
    return spread(values) if values else "–"


def _weight_table(found: Runs, categories: Categories) -> list[str]:
    rows = []
    for row, runs in found.items():
        for loss in runs[0]["weight_range"] if runs else ():
            ranges = [[run["weight_range"][loss][name] for run in runs] for name in categories.names]
            cells = (
                f"{min(low for low, _ in one):.2f} to {max(high for _, high in one):.2f}" for one in ranges
            )
            rows.append([row, loss, *cells])
    return markdown_table(["", "loss", *(_title(categories, c) for c in range(len(categories.names)))], rows)


def _title(categories: Categories, index: int) -> str:
    return categories.names[index].replace("_", " ") + (", thing" if index in categories.things else "")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of the command line."""
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of all runs")
    parser.add_argument("--rows", nargs="*", choices=tuple(ROWS), default=tuple(ROWS), metavar="ROW")


def runs(given: argparse.Namespace) -> Iterator[tuple[str, str, Config]]:
    """What a command line asks for, seed by seed: what it is, its configuration's name, and the configuration."""
    for seed, row in product(given.seeds or SEEDS, given.rows):
        yield f"{row}, seed {seed}", given.grid, config_of(given.grid, row, seed, given.set)


def page(given: argparse.Namespace) -> str:
    """Write the report that a command line asks for."""
    found = collect(given.grid, given.runs, given.seeds or SEEDS, given.set)
    text, name = report(found), f"panoptic_{Path(given.grid).stem}"
    write_json(given.out / f"{name}.json", found, indent=None)
    write_text(given.out / f"{name}.md", text)
    return text
