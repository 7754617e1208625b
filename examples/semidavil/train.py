"""Train SemiDAViL, or any part of it: python -m examples.semidavil.train CONFIG --set training.seed=1.

RUNS/CONFIG-HASH/config.json      what is run
RUNS/CONFIG-HASH/log.csv          losses, learning rate, throughput, memory; scores_SET.csv: the IoU on a test set
RUNS/CONFIG-HASH/tensorboard      the same for TensorBoard
RUNS/CONFIG-HASH/checkpoint.pt    where a run that was stopped goes on
RUNS/CONFIG-HASH/predictions_SET.png   image, label and prediction of some test images; predictions_alone_SET.png
RUNS/CONFIG-HASH/metrics.json     the final scores, commit, versions, cost; it exists when the run is finished

On several GPUs: torchrun --nproc-per-node 4 -m examples.semidavil.train CONFIG
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from examples.common.command import parse_training, train_named, training_parser
from examples.common.distributed import first_rank_first, rank, world_size
from examples.common.loop import Outcome, carry_out, restored
from examples.common.outcome import METRICS, read_metrics, write_outcome
from examples.common.provenance import provenance
from examples.common.sampling import seed_of
from examples.common.scenes import folders
from examples.common.scenes.batches import Share, Steps
from examples.common.scenes.task import Task, load_task, streams
from examples.common.training import in_order
from examples.semidavil.config import Config, load_config
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
    """Carry a run out, or go on with it, and return its metrics; a finished run is not repeated.

    Where a process group is up, all ranks call this, each with its own device. They train as one process would on the
    joined batch; the first of them writes. `folder` and `kept` must be the same files to all of them.

    Args:
        config: the run.
        folder: its files.
        kept: where runs share what is computed once: label splits, class counts, rendered streets.
        device: of torch.
        stop_after: stop after this step with a checkpoint, and return nothing; 0 goes on to the end.
        progress: show progress bars.

    Raises:
        ValueError: there is nothing labelled to train on, the batch cannot be shared between ranks and pieces, or the
            folder has a checkpoint of another configuration.
        FloatingPointError: the loss is not finite.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when the running step is finished and saved.
    """
    if (folder / METRICS).is_file():
        return read_metrics(folder)
    seed, last = config.training.seed, config.training.iterations
    share = Share(rank(), world_size(), config.training.accumulation)
    share.places(config.data.batch_size)  # refuse now what no step could be made of
    with first_rank_first():
        task = load_task(config.data, kept)
        unlabelled, flip = config.components.consistency, config.data.flip
        sources = streams(task, config.data, kept, seed, unlabelled=unlabelled, flip=flip)
        supervision(
            config, task, kept
        )  # where it counts classes, the others read what the first rank counted
    if not sources.keys() & {"source", "labelled"}:
        raise ValueError("nothing is labelled: raise data.budget or set data.use_source = true")
    engine, seconds = _engine(config, task, folder, torch.device(device), kept)
    steps = in_order(Steps(sources, seed, engine.step, last, share), config.training.workers, device)
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
            image = next(iter(sources.values())).batch(0, seed, share).image
            _finish(engine, task, folder, outcome, list(image.shape[-2:]))
    return read_metrics(folder)


def _engine(
    config: Config, task: Task, folder: Path, device: torch.device, kept: Path
) -> tuple[Engine, float]:
    """A new engine, or the one that the folder's checkpoint holds; and the seconds that its steps took."""
    seed = config.training.seed
    torch.manual_seed(seed)
    engine = Engine(config, task, device, kept)
    if rank() > 0:  # other draws of dropout than the first rank's
        torch.manual_seed(seed_of(seed, rank(), _RANKS))
    return engine, restored(engine, folder)


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
    """The options that say where data, captions and runs lie."""
    folders.add_folders(parser, RUNS)
    parser.add_argument("--captions", default="", help='the file of captions, for model.captions = "file"')


def with_folders(config: Config, given: argparse.Namespace) -> Config:
    """The configuration with the folders of the command line, where it names them."""
    config = folders.with_folders(config, given)
    file = given.captions or config.model.caption_file
    return replace(config, model=replace(config.model, caption_file=file))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = training_parser(
        __doc__.split("\n", 1)[0],
        configs="examples/semidavil/configs",
        overrides="training.seed=1 loss='\"CE\"'",
        smoke="the whole pipeline on toy data, in a minute",
    )
    parser.add_argument("--vision", metavar="NAME", help="model.vision: clip:PATH-OR-HUB-NAME, ...")
    parser.add_argument("--text", metavar="NAME", help="model.text: clip:PATH-OR-HUB-NAME, minilm, ...")
    add_folders(parser)
    given = parse_training(parser, arguments)
    encoders = {"model.vision": given.vision, "model.text": given.text}
    overrides = [*given.set, *(f"{key}={json.dumps(name)}" for key, name in encoders.items() if name)]
    if given.smoke:
        from examples.semidavil.smoke import smoke  # noqa: PLC0415

        smoke(overrides, device=given.device)
        return
    config = with_folders(load_config(given.config, overrides), given)
    train_named(given, config, train)


if __name__ == "__main__":
    main()
