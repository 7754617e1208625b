"""Cross-entropy against GBW in the semantic head, over seeds: mPQ, mSQ and mRQ as a table.

    python -m examples.uda_gbw.panoptic.compare run
    python -m examples.uda_gbw.panoptic.compare report

`report` writes panoptic.json and panoptic.md from the finished runs. The test set is held-out streets: CamVid has no
instance labels, so that no score of instances on it exists.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from examples.common.config import run_folder
from examples.common.markdown import distinct, markdown_table, spread
from examples.common.outcome import METRICS
from examples.common.published import NONE, beside, read_published
from examples.common.scoring import by_rarity
from examples.common.streets import CLASSES, THINGS
from examples.common.training import write_atomically
from examples.uda_gbw.panoptic.config import Config, load_config
from examples.uda_gbw.panoptic.train import RUNS, train

CONFIG = "small"
VARIANTS: Mapping[str, str] = {"cross-entropy": "none", "GBW": "gbw"}  # label: weighting.scheme
PUBLISHED = Path(__file__).parents[1] / "published.toml"
PAPER = {"cross-entropy": "EDAPS", "GBW": "GBW (EDAPS)"}  # the rows of its Table 3
SEEDS = (0, 1, 2)
OUT = Path("benchmarks/results/uda_gbw")
Runs = Mapping[str, Sequence[Mapping[str, Any]]]


def config_of(variant: str, seed: int, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a run."""
    own = [f'weighting.scheme="{VARIANTS[variant]}"', f"training.seed={seed}"]
    return load_config(CONFIG, [*overrides, *own])


def collect(runs: Path, seeds: Sequence[int], overrides: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The metrics of the finished runs, {variant: [metrics]}."""
    found: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
    for variant, entries in found.items():
        for seed in seeds:
            config = config_of(variant, seed, overrides)
            path = run_folder(runs, CONFIG, config.as_dict()) / METRICS
            if path.is_file():
                entries.append(json.loads(path.read_text()))
    return found


def report(found: Runs) -> str:
    """The page in Markdown.

    Raises:
        ValueError: no run is finished.
    """
    every = [run for runs in found.values() for run in runs]
    if not every:
        raise ValueError("no run is finished: carry them out with `compare run`")
    lines = [
        "# Panoptic segmentation of generated streets: GBW in the semantic head",
        "",
        _reading(),
        "",
        _recipe(every),
    ]
    lines += ["", "## Panoptic quality", "", *_quality_table(found)]
    lines += ["", *_beside(found)]
    lines += ["", "## PQ of each class", "", *_class_table(found)]
    lines += ["", "## Class weights", "", "The least and the greatest in a logged step, over all seeds.", ""]
    return "\n".join([*lines, *_weight_table(found)]) + "\n"


def _reading() -> str:
    return (
        "In percent, mean ± standard deviation over the seeds. Training and test are generated streets, of different "
        "scenes; nothing is adapted. CamVid has no instance labels, so a score of instances on it does not exist. "
        "The ceiling is what the post-processing makes of heads without any error. mIoU is that of the semantic head "
        "before the post-processing. Differences of a point or two between cells of a few seeds say little."
    )


def _recipe(runs: Sequence[Mapping[str, Any]]) -> str:
    data = [run["config"]["data"] for run in runs]
    sizes = distinct(f"{one['height']}×{one['width']}" for one in data)
    return (
        f"Runs: {len(runs)}, of {distinct(run['config']['training']['iterations'] for run in runs)} steps; batch "
        f"{distinct(one['batch_size'] for one in data)}; {distinct(one['streets'] for one in data)} streets of "
        f"training, {distinct(one['test_streets'] for one in data)} of the test, {sizes} pixels; things of fewer than "
        f"{distinct(one['min_pixels'] for one in data)} pixels are void; seeds "
        f"{distinct(run['config']['training']['seed'] for run in runs)}; "
        f"{sum(run['seconds'] for run in runs) / len(runs):.0f} seconds of training a run. Device: "
        f"{distinct(run['device'] for run in runs)}; threads: {distinct(run['threads'] for run in runs)}; commit: "
        f"{distinct(run['commit'] for run in runs)}. Each run's scores and configuration are in the JSON file beside "
        "this page."
    )


def _quality_table(found: Runs) -> list[str]:
    heads = ["", "seeds", "mPQ", "mSQ", "mRQ", "mPQ of things", "mPQ of stuff", "mIoU11"]
    rows = []
    for variant, runs in found.items():
        if runs:
            cells = [
                [*_qualities(run["scores"]["panoptic"]), run["scores"]["mean_iou"]["mIoU11"]] for run in runs
            ]
            rows.append([variant, str(len(runs)), *map(spread, zip(*cells, strict=True))])
    ceiling = next(run for runs in found.values() for run in runs)["ceiling"]
    return markdown_table(
        heads, [*rows, ["ceiling", "–", *(spread([x]) for x in _qualities(ceiling)), "100.0"]]
    )


def _beside(found: Runs) -> list[str]:
    ours = {}
    for variant, runs in found.items():
        cells = [[*run["scores"]["panoptic"]["all"].values()] for run in runs]
        ours[variant] = [spread(values) for values in zip(*cells, strict=True)] or [NONE] * 3
    table = read_published(PUBLISHED)["table3"]
    return beside(table, table.columns, ours, same=False, names=PAPER)


def _qualities(panoptic: Mapping[str, Mapping[str, float]]) -> list[float]:
    return [*panoptic["all"].values(), panoptic["things"]["mPQ"], panoptic["stuff"]["mPQ"]]


def _class_table(found: Runs) -> list[str]:
    pixels = next(run for runs in found.values() for run in runs)["scores"]["pixels"]
    order = by_rarity(pixels)
    heads = [f"{_title(c)} ({100 * pixels[c] / sum(pixels):.2g} %)" for c in order]
    rows = [
        [variant, *(_spread_of_class([run["scores"]["each"] for run in runs], CLASSES[c]) for c in order)]
        for variant, runs in found.items()
        if runs
    ]
    return markdown_table(["", *heads], rows)


def _spread_of_class(each: Sequence[Mapping[str, Mapping[str, float]]], name: str) -> str:
    """Of the runs in which the class occurs: one with too few pixels for an instance has no segment."""
    values = [one[name]["PQ"] for one in each if name in one]
    return spread(values) if values else "–"


def _weight_table(found: Runs) -> list[str]:
    rows = []
    for variant, runs in found.items():
        if runs:
            ranges = [[run["weight_range"][name] for run in runs] for name in CLASSES]
            cells = (
                f"{min(low for low, _ in one):.2f} to {max(high for _, high in one):.2f}" for one in ranges
            )
            rows.append([variant, *cells])
    return markdown_table(["", *(_title(c) for c in range(len(CLASSES)))], rows)


def _title(index: int) -> str:
    return CLASSES[index].replace("_", " ") + (", thing" if index in THINGS else "")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("run", "report"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of all runs")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(arguments)
    if given.action == "report":
        found = collect(given.runs, given.seeds, given.set)
        page, content = report(found), json.dumps(found) + "\n"
        write_atomically(given.out / "panoptic.json", lambda path: path.write_text(content))
        write_atomically(given.out / "panoptic.md", lambda path: path.write_text(page))
        print(page)
        return
    for seed in given.seeds:
        for variant in VARIANTS:
            config = config_of(variant, seed, given.set)
            print(f"{variant}, seed {seed}", flush=True)
            train(config, run_folder(given.runs, CONFIG, config.as_dict()), device=given.device)


if __name__ == "__main__":
    main()
