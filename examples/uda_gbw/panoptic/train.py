"""Train a panoptic network with or without adaptation, and with or without GBW in its semantic losses. One process.

RUNS/CONFIG-HASH/config.json        what is run
RUNS/CONFIG-HASH/log.csv            the losses, learning rate, throughput, memory; scores_SET.csv: IoU on a test set
RUNS/CONFIG-HASH/weights_LOSS.csv   the class weights of each semantic loss
RUNS/CONFIG-HASH/checkpoint.pt      where a run that was stopped goes on
RUNS/CONFIG-HASH/metrics.json       the final scores, commit, versions, cost; it ends the run
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from examples.common.logs import read_log
from examples.common.loop import Outcome, carry_out
from examples.common.outcome import METRICS, TABLES, read_metrics
from examples.common.provenance import provenance
from examples.common.scenes.folders import add_folders, with_folders
from examples.common.scenes.task import Task
from examples.common.training import write_json, write_text
from examples.uda_gbw.data import streams
from examples.uda_gbw.panoptic.config import Config
from examples.uda_gbw.panoptic.data import load_task, source_classes
from examples.uda_gbw.panoptic.engine import Engine
from examples.uda_gbw.panoptic.scores import perfect_outputs, score
from examples.uda_gbw.train import log_weights

__all__ = ["add_folders", "quality", "train", "with_folders"]


def train(
    config: Config,
    folder: Path,
    kept: Path,
    *,
    device: str = "cpu",
    stop_after: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Carry a run out, in one process; see `examples.common.loop`."""
    if (folder / METRICS).is_file():
        return read_metrics(folder)
    task = load_task(config.data)
    classes = source_classes(task, config.data, kept)
    torch.manual_seed(config.training.seed)
    engine = Engine(config, classes, torch.device(device))
    sources = streams(task, classes, config.semantic().data, config.training.seed)
    if not engine.method.reads_target:
        del sources["target"]
    outcome = carry_out(
        engine,
        sources,
        folder,
        lambda: engine.evaluate(task, progress=progress),
        device=device,
        record=lambda logs: log_weights(engine, config.categories.names, logs),
        stop_after=stop_after,
        progress=progress,
    )
    if not outcome.finished:
        return {}
    _finish(engine, task, folder, outcome)
    return read_metrics(folder)


def _finish(engine: Engine, task: Task, folder: Path, outcome: Outcome) -> None:
    config = engine.config
    metrics = {
        "note": config.note,
        "config": config.as_dict(),
        "scores": outcome.entries,
        "ceiling": {name: _ceiling(config, task, name) for name in task.tests},
        "weight_range": {
            name: _weight_range(folder, name, config.categories.names) for name in engine.class_weights()
        },
        **provenance(engine.device, outcome.seconds, 1),
    }
    write_text(
        folder / TABLES, "".join(f"{test}: {quality(entry)}\n" for test, entry in outcome.entries.items())
    )
    write_json(folder / METRICS, metrics, indent=None)


def _ceiling(config: Config, task: Task, test: str) -> dict[str, Any]:
    """The panoptic quality of heads without any error."""
    names, rule = config.categories.names, config.instance
    entry = score(
        lambda _, code: perfect_outputs(code, len(names), rule.sigma),
        task.tests[test],
        config.categories,
        rule,
    )
    quality: dict[str, Any] = entry["panoptic"]
    return quality


def _weight_range(folder: Path, loss: str, names: Sequence[str]) -> dict[str, list[float]]:
    """The least and the greatest logged weight of each class."""
    rows = read_log(folder / f"weights_{loss}.csv")
    return {name: [min(row[name] for row in rows), max(row[name] for row in rows)] for name in names}


def quality(entry: dict[str, Any]) -> str:
    """The means over all classes, in percent, as text."""
    return ", ".join(f"{name} {100 * value:.1f} %" for name, value in entry["panoptic"]["all"].items())
