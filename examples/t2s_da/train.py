"""Train T2S-DA, or any part of it.

RUNS/CONFIG-HASH/config.json      what is run
RUNS/CONFIG-HASH/log.csv          losses, learning rate, throughput, memory; scores_SET.csv: the IoU on a test set
RUNS/CONFIG-HASH/tensorboard      the same for TensorBoard
RUNS/CONFIG-HASH/checkpoint.pt    where a run that was stopped goes on
RUNS/CONFIG-HASH/metrics.json     the final scores, commit, versions, cost; it exists when the run is finished
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from examples.common.distributed import first_rank_first, rank, world_size
from examples.common.loop import carry_out
from examples.common.outcome import METRICS, read_metrics, write_outcome
from examples.common.provenance import provenance
from examples.common.scenes import folders
from examples.common.scenes.batches import Share
from examples.common.scenes.task import Task, load_task
from examples.t2s_da.config import Config
from examples.t2s_da.engine import Engine
from examples.t2s_da.evaluation import evaluate, evaluate_source, feature_metrics
from examples.t2s_da.scene import scene_streams


def train(
    config: Config,
    folder: Path,
    kept: Path,
    *,
    device: str = "cpu",
    stop_after: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Carry a run out; see `examples.common.loop`.

    Raises:
        ValueError: the batch cannot be shared between the ranks.
    """
    if (folder / METRICS).is_file():
        return read_metrics(folder)
    share = Share(rank(), world_size())
    share.places(config.data.batch_size)  # refuse now what no step could be made of
    with first_rank_first():
        task = load_task(config.data, kept)
        sources = scene_streams(config, task, kept)
    engine = Engine(config, task.classes, torch.device(device))
    outcome = carry_out(
        engine,
        sources,
        folder,
        lambda: evaluate(engine, task, progress=progress and rank() == 0),
        share=share,
        device=device,
        stop_after=stop_after,
        progress=progress,
    )
    if not outcome.finished:
        return {}
    shown, entries = progress and rank() == 0, outcome.entries
    source = evaluate_source(engine, task, progress=shown)
    if config.training.feature_metrics:
        features = feature_metrics(engine, task, progress=shown)
        entries = {name: {**entry, **features[name]} for name, entry in entries.items()}
    with first_rank_first():
        if rank() == 0:
            _finish(engine, task, folder, entries, source, outcome.seconds)
    return read_metrics(folder)


def _finish(
    engine: Engine,
    task: Task,
    folder: Path,
    entries: dict[str, Any],
    source: dict[str, Any] | None,
    seconds: float,
) -> None:
    metrics = {
        "note": engine.config.note,
        "classes": list(task.classes),
        "crop": list(engine.config.data.crop or ()),
        "scores": entries,
        "source": source,
        "class_weight": engine.weights.class_weight.tolist(),
        **provenance(engine.device, seconds, world_size()),
    }
    write_outcome(folder, metrics, next(iter(task.means.values())))


def add_folders(parser: argparse.ArgumentParser) -> None:
    """The options that say where data and styles lie."""
    folders.add_folders(parser)
    parser.add_argument(
        "--styles", default="", help="a folder of pictures to take styles from, without a target"
    )


def with_folders(config: Config, given: argparse.Namespace) -> Config:
    """The configuration with the folders of the command line, where it names them."""
    config = folders.with_folders(config, given)
    styles = given.styles or config.translation.styles
    return replace(config, translation=replace(config.translation, styles=styles))
