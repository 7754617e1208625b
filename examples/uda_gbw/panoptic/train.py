"""Train a panoptic network with or without adaptation, and with or without GBW in its semantic losses. One process.

    python -m examples.uda_gbw.panoptic.train small --set 'weighting.scheme="gbw"'
    python -m examples.uda_gbw.panoptic.train synthia --source SYNTHIA --target Cityscapes

RUNS/CONFIG-HASH/config.json        what is run
RUNS/CONFIG-HASH/log.csv            the losses, learning rate, throughput, memory; scores_SET.csv: IoU on a test set
RUNS/CONFIG-HASH/weights_LOSS.csv   the class weights of each semantic loss
RUNS/CONFIG-HASH/checkpoint.pt      where a run that was stopped goes on
RUNS/CONFIG-HASH/metrics.json       the final scores, commit, versions, cost; it ends the run
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from examples.common.command import parse_training, training_parser
from examples.common.config import run_folder
from examples.common.logs import Logs, read_log
from examples.common.loop import Outcome, carry_out, restored
from examples.common.outcome import METRICS, read_metrics
from examples.common.provenance import provenance
from examples.common.scenes.batches import Steps
from examples.common.scenes.folders import add_folders, with_folders
from examples.common.scenes.task import Task
from examples.common.training import in_order, write_atomically
from examples.uda_gbw.data import streams
from examples.uda_gbw.panoptic.config import Config, load_config
from examples.uda_gbw.panoptic.data import load_task, source_classes
from examples.uda_gbw.panoptic.engine import Engine
from examples.uda_gbw.panoptic.scores import perfect_outputs, score

RUNS = Path("runs/uda_gbw_panoptic")


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

    Args:
        config: the run.
        folder: its files.
        kept: where runs share what is computed once: class counts.
        device: of torch.
        stop_after: stop after this step with a checkpoint, and return nothing; 0 goes on to the end.
        progress: show progress bars.

    Raises:
        ValueError: the folder has a checkpoint of another configuration.
        FloatingPointError: the loss is not finite.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when the running step is finished and saved.
    """
    if (folder / METRICS).is_file():
        return read_metrics(folder)
    recipe = config.training
    task = load_task(config.data)
    classes = source_classes(task, config.data, kept)
    torch.manual_seed(recipe.seed)
    engine = Engine(config, classes, torch.device(device))
    seconds = restored(engine, folder)
    sources = streams(task, classes, config.semantic().data, recipe.seed)
    if not engine.method.reads_target:
        del sources["target"]
    outcome = carry_out(
        engine,
        in_order(Steps(sources, recipe.seed, engine.step, recipe.iterations), recipe.workers, device),
        folder,
        seconds,
        lambda: engine.evaluate(task, progress=progress),
        record=lambda logs: _log_weights(engine, logs),
        stop_after=stop_after,
        progress=progress,
    )
    if not outcome.finished:
        return {}
    _finish(engine, task, folder, outcome)
    return read_metrics(folder)


def _log_weights(engine: Engine, logs: Logs) -> None:
    recipe = engine.config.training
    if engine.step % recipe.log_every == 0 or engine.step == recipe.iterations:
        for name, weights in engine.class_weights().items():
            row = dict(zip(engine.config.categories.names, weights, strict=True))
            logs.write(f"weights_{name}", engine.step, row)


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
    text = json.dumps(metrics) + "\n"
    write_atomically(folder / METRICS, lambda path: path.write_text(text))


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


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = training_parser(
        __doc__.split("\n", 1)[0],
        configs="examples/uda_gbw/panoptic/configs",
        overrides="training.seed=1 'weighting.scheme=\"gbw\"'",
        smoke="both methods for a few steps on small streets, the last stopped and resumed",
    )
    add_folders(parser, RUNS)
    given = parse_training(parser, arguments, one_process=True)
    if given.smoke:
        from examples.uda_gbw.panoptic.smoke import smoke  # noqa: PLC0415

        smoke(given.set, device=given.device)
        return
    config = with_folders(load_config(given.config, given.set), given)
    folder = run_folder(given.runs, Path(given.config).stem, config.as_dict())
    metrics = train(config, folder, given.runs / "kept", device=given.device)
    for test, entry in metrics["scores"].items():
        print(f"{test}: {quality(entry)}, in {folder}")


def quality(entry: dict[str, Any]) -> str:
    """The means over all classes, in percent, as text."""
    return ", ".join(f"{name} {100 * value:.1f} %" for name, value in entry["panoptic"]["all"].items())


if __name__ == "__main__":
    main()
