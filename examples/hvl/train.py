"""Train HVL, or any part of it: python -m examples.hvl.train CONFIG --data FOLDER --set training.seed=1.

RUNS/CONFIG-HASH/config.json      what is run
RUNS/CONFIG-HASH/log.csv          losses, learning rate, throughput, memory; scores_SET.csv: the IoU on a test set
RUNS/CONFIG-HASH/checkpoint.pt    where a run that was stopped goes on
RUNS/CONFIG-HASH/queries_SET.png  image, label, prediction, and which query claims each pixel, of some test images
RUNS/CONFIG-HASH/metrics.json     the final scores, commit, versions, cost; it exists when the run is finished

On several GPUs: torchrun --nproc-per-node 2 -m examples.hvl.train CONFIG
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from examples.common.command import parse_training, train_named, training_parser
from examples.common.distributed import first_rank_first, rank, world_size
from examples.common.loop import carry_out, restored
from examples.common.outcome import METRICS, read_metrics, write_outcome
from examples.common.provenance import provenance
from examples.common.scenes.batches import Share, Steps
from examples.common.training import in_order
from examples.hvl.config import Config, load_config
from examples.hvl.data.task import Task, load_task, streams
from examples.hvl.engine import Engine
from examples.hvl.evaluation import evaluate
from examples.hvl.pictures import write_claims
from examples.hvl.schedule import with_steps

RUNS = Path("runs/hvl")


def train(
    config: Config,
    folder: Path,
    kept: Path,
    *,
    device: str = "cpu",
    stop_after: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Carry a run out, or go on with it, and return its metrics; a finished run is not repeated.

    Where a process group is up, all ranks call this, each with its own device. They train as one process would on the
    joined batch; the first of them writes. `folder` and `kept` must be the same files to all of them.

    Args:
        config: the run.
        folder: its files.
        kept: where runs share what is computed once: label splits, pixels of each class.
        device: of torch.
        stop_after: stop after this step with a checkpoint, and return nothing; 0 goes on to the end.
        progress: show progress bars.

    Raises:
        ValueError: the batch cannot be shared between the ranks, or the folder has a checkpoint of another
            configuration.
        FloatingPointError: the loss of a logged step is not finite.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when the running step is finished and saved.
    """
    if (folder / METRICS).is_file():
        return read_metrics(folder)
    share = Share(rank(), world_size())
    share.places(config.data.batch_size)  # refuse now what no step could be made of
    with first_rank_first():
        task = load_task(config.data, kept)
        sources = streams(task, config.data, config.training.seed, kept)
    config = with_steps(config, len(task.unlabelled.names))
    recipe = config.training
    engine, seconds = _engine(config, task, folder, torch.device(device))
    steps = in_order(
        Steps(sources, recipe.seed, engine.step, recipe.iterations, share), recipe.workers, device
    )
    outcome = carry_out(
        engine,
        steps,
        folder,
        seconds,
        lambda: evaluate(engine, task, progress=progress and rank() == 0),
        stop_after=stop_after,
        progress=progress,
    )
    if not outcome.finished:
        return {}
    with first_rank_first():
        if rank() == 0:
            image_size = list(sources["labelled"].batch(0, recipe.seed, share).image.shape[-2:])
            _finish(engine, task, folder, outcome.entries, outcome.seconds, image_size)
    return read_metrics(folder)


def _engine(config: Config, task: Task, folder: Path, device: torch.device) -> tuple[Engine, float]:
    """A new engine, or the one that the folder's checkpoint holds; and the seconds that its steps took."""
    torch.manual_seed(config.training.seed)
    engine = Engine(config, task, device)
    return engine, restored(engine, folder)


def _finish(
    engine: Engine, task: Task, folder: Path, entries: dict[str, Any], seconds: float, image_size: list[int]
) -> None:
    for name, domain in task.tests.items():
        write_claims(engine, domain, task.classes, folder, name)
    metrics = {
        "note": engine.config.note,
        "classes": list(task.classes),
        "labelled": len(task.labelled.names),
        "unlabelled": len(task.unlabelled.names),
        "steps": engine.step,
        "image_size": image_size,
        "scores": entries,
        **provenance(engine.device, seconds, world_size()),
    }
    write_outcome(folder, metrics, next(iter(task.means.values())))


def add_folders(parser: argparse.ArgumentParser) -> None:
    """The options that say where data and runs lie."""
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
    parser.add_argument("--runs", type=Path, default=RUNS)


def with_folders(config: Config, given: argparse.Namespace) -> Config:
    """The configuration with the folders of the command line, where it names them."""
    data = replace(
        config.data, folder=given.data or config.data.folder, splits=given.splits or config.data.splits
    )
    return replace(config, data=data)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = training_parser(
        __doc__.split("\n", 1)[0],
        configs="examples/hvl/configs",
        overrides="weights.anchor=0",
        smoke="the whole pipeline on toy data, in a minute",
    )
    add_folders(parser)
    given = parse_training(parser, arguments)
    if given.smoke:
        from examples.hvl.smoke import smoke  # noqa: PLC0415

        smoke(given.set, device=given.device)
        return
    config = with_folders(load_config(given.config, given.set), given)
    train_named(given, config, train)


if __name__ == "__main__":
    main()
