"""Train T2S-DA, or any part of it: python -m examples.t2s_da.train CONFIG --set training.seed=1.

RUNS/CONFIG-HASH/config.json      what is run
RUNS/CONFIG-HASH/log.csv          losses, learning rate, throughput, memory; scores_SET.csv: the IoU on a test set
RUNS/CONFIG-HASH/tensorboard      the same for TensorBoard
RUNS/CONFIG-HASH/checkpoint.pt    where a run that was stopped goes on
RUNS/CONFIG-HASH/metrics.json     the final scores, commit, versions, cost; it exists when the run is finished

On several GPUs: torchrun --nproc-per-node 2 -m examples.t2s_da.train CONFIG
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from examples.common.command import parse_training, train_named, training_parser
from examples.common.distributed import first_rank_first, rank, world_size
from examples.common.loop import carry_out, restored
from examples.common.outcome import METRICS, read_metrics, write_outcome
from examples.common.provenance import provenance
from examples.common.scenes.batches import Share, Steps
from examples.common.scenes.task import Task, load_task
from examples.common.training import in_order
from examples.t2s_da.config import Config, load_config
from examples.t2s_da.engine import Engine
from examples.t2s_da.evaluation import evaluate, evaluate_source, feature_metrics
from examples.t2s_da.folders import add_scene_folders, with_scene_folders
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
    """Carry a run out, or go on with it, and return its metrics; a finished run is not repeated.

    Where a process group is up, all ranks call this, each with its own device; the first of them writes. `folder` and
    `kept` must be the same files to all of them.

    Args:
        config: the run.
        folder: its files.
        kept: where runs share what is computed once: class counts, rendered streets.
        device: of torch.
        stop_after: stop after this step with a checkpoint, and return nothing; 0 goes on to the end.
        progress: show progress bars.

    Raises:
        ValueError: the batch cannot be shared between ranks, or the folder has a checkpoint of another configuration.
        FloatingPointError: the loss is not finite.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when the running step is finished and saved.
    """
    if (folder / METRICS).is_file():
        return read_metrics(folder)
    seed, last = config.training.seed, config.training.iterations
    share = Share(rank(), world_size())
    share.places(config.data.batch_size)  # refuse now what no step could be made of
    with first_rank_first():
        task = load_task(config.data, kept)
        sources = scene_streams(config, task, kept)
    engine, seconds = _engine(config, task, folder, torch.device(device))
    steps = Steps(sources, seed, engine.step, last, share)
    outcome = carry_out(
        engine,
        in_order(steps, config.training.workers, device),
        folder,
        seconds,
        lambda: evaluate(engine, task, progress=progress and rank() == 0),
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


def _engine(config: Config, task: Task, folder: Path, device: torch.device) -> tuple[Engine, float]:
    """A new engine, or the one that the folder's checkpoint holds; and the seconds that its steps took."""
    engine = Engine(config, task.classes, device)
    return engine, restored(engine, folder)


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


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = training_parser(
        __doc__.split("\n", 1)[0],
        configs="examples/t2s_da/configs",
        overrides="training.seed=1 pull.objective='\"mse\"'",
        smoke="both modes on toy data, in half a minute",
    )
    add_scene_folders(parser)
    given = parse_training(parser, arguments)
    if given.smoke:
        from examples.t2s_da.smoke import smoke  # noqa: PLC0415

        smoke(given.set, device=given.device)
        return
    config = with_scene_folders(load_config(given.config, given.set), given)
    train_named(given, config, train)


if __name__ == "__main__":
    main()
