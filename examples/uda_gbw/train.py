"""Train a method of unsupervised domain adaptation, with or without GBW.

RUNS/CONFIG-HASH/config.json        what is run
RUNS/CONFIG-HASH/log.csv            losses, learning rate, throughput, memory; scores_SET.csv: the IoU on a test set
RUNS/CONFIG-HASH/weights_LOSS.csv   the class weights of each loss
RUNS/CONFIG-HASH/tensorboard        the same for TensorBoard
RUNS/CONFIG-HASH/checkpoint.pt      where a run that was stopped goes on
RUNS/CONFIG-HASH/metrics.json       the final scores, class weights, commit, versions, cost; it ends the run
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from examples.common.distributed import first_rank_first, rank, world_size
from examples.common.logs import Logs, read_log
from examples.common.loop import Outcome, carry_out
from examples.common.outcome import METRICS, read_metrics, write_outcome
from examples.common.provenance import provenance
from examples.common.sampling import seed_of
from examples.common.scenes.batches import Share
from examples.common.scenes.folders import add_folders, with_folders
from examples.common.scenes.task import Task
from examples.uda_gbw.config import Config
from examples.uda_gbw.data import Classes, load_task, source_classes, streams
from examples.uda_gbw.engine import Engine

__all__ = ["add_folders", "train", "with_folders"]
_RANKS = 14  # the stream of random numbers that sets ranks apart
_DIGITS = 6  # of a class weight in metrics.json


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
    seed = config.training.seed
    share = Share(rank(), world_size())
    share.places(config.data.batch_size)  # refuse now what no step could be made of
    with first_rank_first():
        task = load_task(config.data, kept)
        classes = source_classes(task, config.data, kept)
    torch.manual_seed(seed)
    engine = Engine(config, classes, torch.device(device))
    if rank() > 0:  # other draws of dropout than the first rank's
        torch.manual_seed(seed_of(seed, rank(), _RANKS))
    sources = streams(task, classes, config.data, seed)
    if not engine.method.reads_target:
        del sources["target"]
    outcome = carry_out(
        engine,
        sources,
        folder,
        lambda: engine.evaluate(task, progress=progress and rank() == 0),
        share=share,
        device=device,
        record=lambda logs: log_weights(engine, task.classes, logs),
        stop_after=stop_after,
        progress=progress,
    )
    if not outcome.finished:
        return {}
    with first_rank_first():
        if rank() == 0:
            image = sources["source"].batch(0, seed, share).image
            _finish(engine, task, classes, folder, outcome, list(image.shape[-2:]))
    return read_metrics(folder)


def log_weights(engine: Any, classes: Sequence[str], logs: Logs) -> None:
    """A row of each loss's class weights, with the rows of the losses."""
    recipe = engine.config.training
    if engine.step % recipe.log_every and engine.step != recipe.iterations:
        return
    for name, weights in engine.class_weights().items():
        logs.write(f"weights_{name}", engine.step, dict(zip(classes, weights, strict=True)))


def _finish(
    engine: Engine, task: Task, classes: Classes, folder: Path, outcome: Outcome, image_size: list[int]
) -> None:
    metrics = {
        "note": engine.config.note,
        "method": engine.config.method,
        "classes": list(task.classes),
        "source_pixels": classes.pixels.tolist(),
        "image_size": image_size,
        "scores": outcome.entries,
        "class_weights": {name: _weight_history(folder, name, task) for name in engine.class_weights()},
        **provenance(engine.device, outcome.seconds, world_size()),
    }
    write_outcome(folder, metrics, next(iter(task.means.values())))


def _weight_history(folder: Path, loss: str, task: Task) -> dict[str, list[Any]]:
    """The logged weights of a loss: `steps` (T,) and `weights` (T, C)."""
    rows = read_log(folder / f"weights_{loss}.csv")
    return {
        "steps": [int(row["step"]) for row in rows],
        "weights": [[round(row[name], _DIGITS) for name in task.classes] for row in rows],
    }
