"""Train HVL, or any part of it.

RUNS/CONFIG-HASH/config.json      what is run
RUNS/CONFIG-HASH/log.csv          losses, learning rate, throughput, memory; scores_SET.csv: the IoU on a test set
RUNS/CONFIG-HASH/checkpoint.pt    where a run that was stopped goes on
RUNS/CONFIG-HASH/queries_SET.png  image, label, prediction, and which query claims each pixel, of some test images
RUNS/CONFIG-HASH/metrics.json     the final scores, commit, versions, cost; it exists when the run is finished
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from examples.common.distributed import first_rank_first, rank, world_size
from examples.common.loop import Outcome, carry_out
from examples.common.outcome import METRICS, read_metrics, write_outcome
from examples.common.provenance import provenance
from examples.common.scenes.batches import Share
from examples.hvl.config import Config
from examples.hvl.data.task import Task, load_task, streams
from examples.hvl.engine import Engine
from examples.hvl.evaluation import evaluate
from examples.hvl.pictures import write_claims
from examples.hvl.schedule import with_steps


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
        sources = streams(task, config.data, config.training.seed, kept)
    config = with_steps(config, len(task.unlabelled.names))
    torch.manual_seed(config.training.seed)
    engine = Engine(config, task, torch.device(device))
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
    with first_rank_first():
        if rank() == 0:
            image_size = list(sources["labelled"].batch(0, config.training.seed, share).image.shape[-2:])
            _finish(engine, task, folder, outcome, image_size)
    return read_metrics(folder)


def _finish(engine: Engine, task: Task, folder: Path, outcome: Outcome, image_size: list[int]) -> None:
    for name, domain in task.tests.items():
        write_claims(engine, domain, task.classes, folder, name)
    metrics = {
        "note": engine.config.note,
        "classes": list(task.classes),
        "labelled": len(task.labelled.names),
        "unlabelled": len(task.unlabelled.names),
        "steps": engine.step,
        "image_size": image_size,
        "scores": outcome.entries,
        **provenance(engine.device, outcome.seconds, world_size()),
    }
    write_outcome(folder, metrics, next(iter(task.means.values())))


def add_folders(parser: argparse.ArgumentParser) -> None:
    """The options that say where data lie."""
    parser.add_argument(
        "--data",
        default="",
        help="the folder of VOC, COCO, ADE20K or Cityscapes, or one in CamVid's layout",
    )
    parser.add_argument(
        "--splits",
        default="",
        help="a data set's folder of published splits, where data.split names one with labeled.txt and unlabeled.txt",
    )


def with_folders(config: Config, given: argparse.Namespace) -> Config:
    """The configuration with the folders of the command line, where it names them."""
    data = replace(
        config.data, folder=given.data or config.data.folder, splits=given.splits or config.data.splits
    )
    return replace(config, data=data)
