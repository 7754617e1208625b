"""Train one method on one task, in one process.

RUNS/CONFIG-HASH/config.json      what is run
RUNS/CONFIG-HASH/log.csv          losses, learning rate, throughput, memory; validation.csv: Dice on validation
RUNS/CONFIG-HASH/tensorboard      the same for TensorBoard
RUNS/CONFIG-HASH/checkpoint.pt    where a run that was stopped goes on, with the best weights so far
RUNS/CONFIG-HASH/metrics.json     the test scores, commit, versions, seconds; it exists when the run is finished
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from examples.common.logs import Logs
from examples.common.loop import restored, save
from examples.common.meter import Meter
from examples.common.outcome import METRICS, read_metrics
from examples.common.training import in_order, stop_request
from examples.synapse_ssl.config import Config
from examples.synapse_ssl.data.batches import Steps
from examples.synapse_ssl.data.task import Cases, Task, load_task
from examples.synapse_ssl.engine import Engine, class_counts
from examples.synapse_ssl.evaluation import evaluate
from examples.synapse_ssl.results import finish


def train(
    config: Config,
    folder: Path,
    kept: Path,
    *,
    device: str = "cpu",
    stop_after: int = 0,
    progress: bool = True,
    task: Task | None = None,
) -> dict[str, Any]:
    """Carry a run out, in one process; see `examples.common.loop`.

    Args:
        config: the run.
        folder: its files.
        kept: where runs share what is computed once: label lists, resampled volumes.
        device: of torch.
        stop_after: stop after this step with a checkpoint, and return nothing; 0 goes on to the end.
        progress: show progress bars.
        task: the data, where it is at hand; None loads the configuration's.

    Raises:
        ValueError: nothing is labelled, the patch does not fit the network, or the folder has a checkpoint that
            cannot be read or is of another configuration.
        FloatingPointError: the loss is not finite.
        OSError: a checkpoint cannot be written; the former one is whole.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when the running step is finished and saved.
    """
    if (folder / METRICS).is_file():
        return read_metrics(folder)
    task = task or load_task(config.data, kept, progress=progress)
    counts, recipe = class_counts(task), config.training
    last = recipe.iterations
    torch.manual_seed(config.training.seed)
    engine = Engine(config, counts, torch.device(device))
    restored(engine, folder)
    with (
        stop_request() as stop,
        Logs(folder, engine.step) as logs,
        tqdm(total=last, initial=engine.step, disable=not progress) as bar,
    ):
        meter = Meter(engine, logs, engine.seconds)
        need = engine.method.uses_unlabelled
        steps = Steps(task, config.data, recipe.seed, engine.step, last, unlabelled=need)
        for batch in in_order(steps, recipe.workers, device):
            meter.advance(batch)
            bar.update()
            done = engine.step == last
            if recipe.validate_every and (
                done or engine.step % (recipe.validate_every * recipe.steps_per_epoch) == 0
            ):
                with meter.pause():
                    _validate(engine, task, logs)
            stopping = stop.is_set() or engine.step == stop_after
            if done or stopping or engine.step % recipe.checkpoint_every == 0:
                with meter.pause() as engine.seconds:
                    save(engine, folder, engine.seconds)
            if stop.is_set() and not done:
                raise KeyboardInterrupt(f"stopped after step {engine.step}; run again to go on from there")
            if stopping and not done:
                return {}
    engine.take_best()
    scores = _scores(engine, task, task.test, progress=progress)
    return finish(folder, engine, task, counts, scores)


def _validate(engine: Engine, task: Task, logs: Logs) -> None:
    scores = _scores(engine, task, task.validation, progress=False)
    engine.keep_if_best(scores["dsc"])
    logs.write("validation", engine.step, {"dsc": scores["dsc"], "asd": scores["asd"]})


def _scores(engine: Engine, task: Task, cases: Cases, *, progress: bool) -> dict[str, Any]:
    rule = engine.config.evaluation
    return evaluate(
        engine.predict,
        cases,
        task.classes,
        patch=engine.config.data.patch,
        overlap=rule.overlap,
        published=rule.published,
        progress=progress,
    )


def add_folders(parser: argparse.ArgumentParser) -> None:
    """The option that says where data lie."""
    parser.add_argument("--data", default="", help="the folder of the volumes; organs need none")


def with_folders(config: Config, given: argparse.Namespace) -> Config:
    """The configuration with the folder of the command line, where it names one."""
    return replace(config, data=replace(config.data, folder=given.data or config.data.folder))
