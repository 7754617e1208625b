"""Train SemiDAViL, or any part of it.

RUNS/CONFIG-HASH/config.json      what is run
RUNS/CONFIG-HASH/log.csv          losses, learning rate, throughput, memory; scores_SET.csv: the IoU on a test set
RUNS/CONFIG-HASH/tensorboard      the same for TensorBoard
RUNS/CONFIG-HASH/checkpoint.pt    where a run that was stopped goes on
RUNS/CONFIG-HASH/predictions_SET.png   image, label and prediction of some test images; predictions_alone_SET.png
RUNS/CONFIG-HASH/metrics.json     the final scores, commit, versions, cost; it exists when the run is finished
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from examples.common.distributed import first_rank_first, rank, world_size
from examples.common.loop import Outcome, carry_out
from examples.common.outcome import METRICS, read_metrics, write_outcome
from examples.common.provenance import provenance
from examples.common.sampling import seed_of
from examples.common.scenes import folders
from examples.common.scenes.batches import Share
from examples.common.scenes.task import Task, load_task, streams
from examples.semidavil.config import Config
from examples.semidavil.engine import Engine
from examples.semidavil.evaluation import evaluate
from examples.semidavil.pictures import write_pictures
from examples.semidavil.recipe import supervision

RUNS = Path("runs/semidavil")
_RANKS = 14  # the stream of random numbers that sets ranks apart


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
        ValueError: there is nothing labelled to train on, or the batch cannot be shared between ranks and pieces.
    """
    if (folder / METRICS).is_file():
        return read_metrics(folder)
    seed = config.training.seed
    share = Share(rank(), world_size(), config.training.accumulation)
    share.places(config.data.batch_size)  # refuse now what no step could be made of
    with first_rank_first():
        task = load_task(config.data, kept)
        unlabelled, flip = config.components.consistency, config.data.flip
        sources = streams(task, config.data, kept, seed, unlabelled=unlabelled, flip=flip)
        supervision(config, task, kept)  # where it counts, the others read what the first rank counted
    if not sources.keys() & {"source", "labelled"}:
        raise ValueError("nothing is labelled: raise data.budget or set data.use_source = true")
    torch.manual_seed(seed)
    engine = Engine(config, task, torch.device(device), kept)
    if rank() > 0:  # other draws of dropout than the first rank's
        torch.manual_seed(seed_of(seed, rank(), _RANKS))
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
            image = next(iter(sources.values())).batch(0, seed, share).image
            _finish(engine, task, folder, outcome, list(image.shape[-2:]))
    return read_metrics(folder)


def _finish(engine: Engine, task: Task, folder: Path, outcome: Outcome, image_size: list[int]) -> None:
    name, test = next(iter(task.tests.items()))
    write_pictures(engine, test, task.classes, folder, name)
    metrics = {
        "note": engine.config.note,
        "classes": list(task.classes),
        "labelled": len(task.labelled),
        "image_size": image_size,
        "scores": outcome.entries,
        **provenance(engine.device, outcome.seconds, world_size()),
    }
    write_outcome(folder, metrics, next(iter(task.means.values())))


def add_folders(parser: argparse.ArgumentParser) -> None:
    """The options that say where data and captions lie."""
    folders.add_folders(parser)
    parser.add_argument("--captions", default="", help='the file of captions, for model.captions = "file"')


def with_folders(config: Config, given: argparse.Namespace) -> Config:
    """The configuration with the folders of the command line, where it names them."""
    config = folders.with_folders(config, given)
    file = given.captions or config.model.caption_file
    return replace(config, model=replace(config.model, caption_file=file))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Short forms of `--set model.vision=...` and `model.text`."""
    for key in ("vision", "text"):
        parser.add_argument(
            f"--{key}",
            dest="set",
            action="append",
            type=lambda name, key=key: f"model.{key}={json.dumps(name)}",
            metavar="NAME",
            help=f"model.{key}: clip:PATH-OR-HUB-NAME, ...",
        )
