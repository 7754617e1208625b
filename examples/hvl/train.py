"""Train HVL, or any part of it: python -m examples.hvl.train CONFIG --data FOLDER --set training.seed=1.

RUNS/CONFIG-HASH/config.json      what is run
RUNS/CONFIG-HASH/log.csv          losses, learning rate, throughput, memory; scores_SET.csv: the IoU on a test set
RUNS/CONFIG-HASH/checkpoint.pt    where a run that was stopped goes on
RUNS/CONFIG-HASH/metrics.json     the final scores, commit, versions, cost; it exists when the run is finished
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from examples.common.config import run_folder
from examples.common.logs import Logs
from examples.common.meter import Meter
from examples.common.provenance import provenance
from examples.common.training import CHECKPOINT, in_order, stop_request, write_atomically
from examples.hvl.config import Config, load_config
from examples.hvl.data.task import Task, load_task, streams
from examples.hvl.engine import Engine
from examples.hvl.evaluation import evaluate
from examples.semidavil.data.batches import Steps
from examples.semidavil.evaluation import table

METRICS = "metrics.json"
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

    Args:
        config: the run.
        folder: its files.
        kept: where runs share what is computed once: label splits.
        device: of torch.
        stop_after: stop after this step with a checkpoint, and return nothing; 0 goes on to the end.
        progress: show progress bars.

    Raises:
        ValueError: the folder has a checkpoint of another configuration.
        FloatingPointError: the loss of a logged step is not finite.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when the running step is finished and saved.
    """
    if (folder / METRICS).is_file():
        return _read_metrics(folder)
    recipe = config.training
    task = load_task(config.data, kept)
    engine, seconds = _engine(config, task, folder, torch.device(device))
    sources = streams(task, config.data, recipe.seed)
    steps = in_order(Steps(sources, recipe.seed, engine.step, recipe.iterations), recipe.workers, device)
    entries: dict[str, Any] = {}
    with (
        stop_request() as stop,
        Logs(folder, engine.step) as logs,
        tqdm(total=recipe.iterations, initial=engine.step, disable=not progress) as bar,
    ):
        meter = Meter(engine, logs, seconds)
        for batch in steps:
            meter.advance(batch)
            bar.update()
            done = engine.step == recipe.iterations
            if done or (recipe.eval_every and engine.step % recipe.eval_every == 0):
                with meter.pause():
                    entries = evaluate(engine, task, progress=progress)
                    for name, entry in entries.items():
                        logs.write(f"scores_{name}", engine.step, entry["mean_iou"])
            interrupted = stop.is_set()
            stopping = interrupted or engine.step == stop_after
            if done or stopping or engine.step % recipe.checkpoint_every == 0:
                with meter.pause() as seconds:
                    _save(engine, folder, seconds)
            if interrupted and not done:
                raise KeyboardInterrupt(f"stopped after step {engine.step}; run again to go on from there")
            if stopping and not done:
                return {}
    # A run may have been ended between its last checkpoint and its metrics.
    entries = entries or evaluate(engine, task, progress=progress)
    _finish(engine, task, folder, entries, seconds, list(sources["labelled"].batch(0, 0).image.shape[-2:]))
    return _read_metrics(folder)


def _engine(config: Config, task: Task, folder: Path, device: torch.device) -> tuple[Engine, float]:
    """A new engine, or the one that the folder's checkpoint holds; and the seconds that its steps took."""
    torch.manual_seed(config.training.seed)
    engine = Engine(config, task.classes, device)
    path = folder / CHECKPOINT
    if path.is_file():
        state = torch.load(path, weights_only=True, map_location=device)
        engine.load_state_dict(state)
        return engine, state["seconds"]
    text = json.dumps(config.as_dict(), indent=1) + "\n"
    write_atomically(folder / "config.json", lambda partial: partial.write_text(text))
    return engine, 0.0


def _save(engine: Engine, folder: Path, seconds: float) -> None:
    state = engine.state_dict() | {"seconds": seconds}
    write_atomically(folder / CHECKPOINT, lambda partial: torch.save(state, partial))


def _finish(
    engine: Engine, task: Task, folder: Path, entries: dict[str, Any], seconds: float, image_size: list[int]
) -> None:
    tables = "".join(f"{name}\n\n{table(entry, task)}\n\n" for name, entry in entries.items())
    write_atomically(folder / "scores.md", lambda partial: partial.write_text(tables))
    metrics = {
        "note": engine.config.note,
        "classes": list(task.classes),
        "labelled": len(task.labelled.names),
        "image_size": image_size,
        "scores": entries,
        **provenance(engine.device, seconds, 1),
    }
    text = json.dumps(metrics, indent=1) + "\n"
    write_atomically(folder / METRICS, lambda partial: partial.write_text(text))


def _read_metrics(folder: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / METRICS).read_text())
    return metrics


def add_folders(parser: argparse.ArgumentParser) -> None:
    """The options that say where data and runs lie."""
    parser.add_argument(
        "--data", default="", help="the folder of VOC or Cityscapes, or one in CamVid's layout"
    )
    parser.add_argument(
        "--splits",
        default="",
        help="a folder with labeled.txt, and perhaps unlabeled.txt, of a published split",
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
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("config", nargs="?", help="a file, or a name in examples/hvl/configs")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="e.g. weights.anchor=0")
    add_folders(parser)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--smoke", action="store_true", help="the whole pipeline on toy data, in a minute")
    given = parser.parse_args(arguments)
    if given.smoke:
        from examples.hvl.smoke import smoke  # noqa: PLC0415

        smoke(given.set, device=given.device)
        return
    if given.config is None:
        parser.error("name a configuration, or --smoke")
    config = with_folders(load_config(given.config, given.set), given)
    folder = run_folder(given.runs, Path(given.config).stem, config.as_dict())
    train(config, folder, given.runs / "kept", device=given.device)
    print((folder / "scores.md").read_text() + f"in {folder}")


if __name__ == "__main__":
    main()
