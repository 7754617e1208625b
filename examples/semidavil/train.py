"""Train SemiDAViL, or any part of it: python -m examples.semidavil.train CONFIG --set training.seed=1.

RUNS/CONFIG-HASH/config.json      what is run
RUNS/CONFIG-HASH/log.csv          losses, learning rate, throughput, memory; scores_SET.csv: the IoU on a test set
RUNS/CONFIG-HASH/tensorboard      the same for TensorBoard
RUNS/CONFIG-HASH/checkpoint.pt    where a run that was stopped goes on
RUNS/CONFIG-HASH/predictions_SET.png   image, label and prediction of some test images
RUNS/CONFIG-HASH/metrics.json     the final scores; it exists when the run is finished
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

import classbalance_losses
from examples.common.logs import Logs
from examples.common.training import CHECKPOINT, stop_request, write_atomically
from examples.semidavil.config import Config, load_config
from examples.semidavil.data.batches import Images, Steps
from examples.semidavil.data.task import Task, load_task, streams
from examples.semidavil.engine import Engine
from examples.semidavil.evaluation import evaluate, table
from examples.semidavil.pictures import write_pictures

METRICS = "metrics.json"
RUNS = Path("runs/semidavil")


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
        kept: where runs share what is computed once: label splits, class counts, rendered streets.
        device: of torch.
        stop_after: stop after this step with a checkpoint, and return nothing; 0 goes on to the end.
        progress: show progress bars.

    Raises:
        ValueError: there is nothing labelled to train on, or the folder has a checkpoint of another configuration.
        FloatingPointError: the loss is not finite.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when the running step is finished and saved.
    """
    if (folder / METRICS).is_file():
        finished: dict[str, Any] = json.loads((folder / METRICS).read_text())
        return finished
    task, seed, last = load_task(config.data, kept), config.training.seed, config.training.iterations
    sources = streams(task, config.data, kept, seed, unlabelled=config.components.consistency)
    if not sources.keys() & {"source", "labelled"}:
        raise ValueError("nothing is labelled: raise data.budget or set data.use_source = true")
    engine = _engine(config, task, folder, torch.device(device))
    steps = _loader(Steps(sources, seed, engine.step, last), config, device)
    with (
        stop_request() as stop,
        Logs(folder, engine.step) as logs,
        tqdm(total=last, initial=engine.step, disable=not progress) as bar,
    ):
        for batch in steps:
            _advance(engine, batch, logs)
            bar.update()
            every, done = config.training.eval_every, engine.step == last
            if done or (every and engine.step % every == 0):
                entries = _evaluate(engine, task, logs, progress=progress)
            stopping = stop.is_set() or engine.step == stop_after
            if done or stopping or engine.step % config.training.checkpoint_every == 0:
                write_atomically(folder / CHECKPOINT, lambda path: torch.save(engine.state_dict(), path))
            if stop.is_set() and not done:
                raise KeyboardInterrupt(f"stopped after step {engine.step}; run again to go on from there")
            if stopping and not done:
                return {}
    name, test = next(iter(task.tests.items()))
    write_pictures(engine, test, task.classes, folder / f"predictions_{name}.png")
    return _finish(folder, config, task, entries)


def _engine(config: Config, task: Task, folder: Path, device: torch.device) -> Engine:
    """A new engine, or the one that the folder's checkpoint holds."""
    torch.manual_seed(config.training.seed)
    engine = Engine(config, task, device)
    if (folder / CHECKPOINT).is_file():
        # Random states must stay on the CPU; load_state_dict moves the rest.
        engine.load_state_dict(torch.load(folder / CHECKPOINT, weights_only=True, map_location="cpu"))
    else:
        text = json.dumps(config.as_dict(), indent=1) + "\n"
        write_atomically(folder / "config.json", lambda path: path.write_text(text))
    return engine


def _loader(steps: Steps, config: Config, device: str) -> DataLoader[dict[str, Images]]:
    """The steps' batches in their order. Its own generator: DataLoader else draws from the one that dropout uses."""
    return DataLoader(
        steps,
        batch_size=None,
        num_workers=config.training.workers,
        pin_memory=device.startswith("cuda"),
        generator=torch.Generator(),
    )


def _advance(engine: Engine, batch: dict[str, Images], logs: Logs) -> None:
    """One step, logged where its turn is; reading the values waits for the device, so only then."""
    recipe, rate, start = engine.config.training, engine.scheduler.get_last_lr()[0], time.perf_counter()
    values = engine.advance(batch)
    if engine.step % recipe.log_every and engine.step != recipe.iterations:
        return
    numbers = {name: float(value) for name, value in values.items()}
    if not torch.isfinite(values["loss"]):
        raise FloatingPointError(f"the loss is {numbers['loss']} at step {engine.step}: lower training.lr")
    seconds = time.perf_counter() - start
    images = sum(len(stream.image) for stream in batch.values())
    cost = {"images_per_second": images / seconds, "peak_memory_mib": _peak_memory(engine.device)}
    logs.write("log", engine.step, numbers | {"lr": rate} | cost)


def _evaluate(engine: Engine, task: Task, logs: Logs, *, progress: bool) -> dict[str, Any]:
    entries = evaluate(engine, task, progress=progress)
    for name, entry in entries.items():
        logs.write(f"scores_{name}", engine.step, entry["mean_iou"])
    return entries


def _finish(folder: Path, config: Config, task: Task, entries: dict[str, Any]) -> dict[str, Any]:
    metrics = {
        "note": config.note,
        "classes": list(task.classes),
        "labelled": len(task.labelled),
        "scores": entries,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "classbalance_losses": classbalance_losses.__version__,
        },
    }
    text = json.dumps(metrics, indent=1) + "\n"
    write_atomically(folder / METRICS, lambda path: path.write_text(text))
    tables = "".join(f"{name}\n\n{table(entry, task)}\n\n" for name, entry in entries.items())
    write_atomically(folder / "scores.md", lambda path: path.write_text(tables))
    return metrics


def _peak_memory(device: torch.device) -> float:
    """The most memory used so far, in MiB: of the device, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def run_folder(runs: Path, name: str, config: Config) -> Path:
    """The folder of a run: readable first, unique last."""
    text = json.dumps(config.as_dict(), sort_keys=True)
    return runs / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def add_folders(parser: argparse.ArgumentParser) -> None:
    """The options that say where data and runs lie."""
    parser.add_argument("--source", default="", help="the folder of GTA5 or SYNTHIA")
    parser.add_argument("--target", default="", help="the folder of Cityscapes, or one in CamVid's layout")
    parser.add_argument("--captions", default="", help='the file of captions, for model.captions = "file"')
    parser.add_argument("--runs", type=Path, default=RUNS)


def with_folders(config: Config, given: argparse.Namespace) -> Config:
    """The configuration with the folders of the command line, where it names them."""
    data = replace(
        config.data, source=given.source or config.data.source, target=given.target or config.data.target
    )
    file = given.captions or config.model.caption_file
    return replace(config, data=data, model=replace(config.model, caption_file=file))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("config", nargs="?", help="a file, or a name in examples/semidavil/configs")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="e.g. training.seed=1 loss='\"CE\"'"
    )
    add_folders(parser)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--smoke", action="store_true", help="the whole pipeline on toy data, in a minute")
    given = parser.parse_args(arguments)
    if given.smoke:
        from examples.semidavil.smoke import smoke  # noqa: PLC0415

        smoke(given.set, device=given.device)
        return
    if given.config is None:
        parser.error("name a configuration, or --smoke")
    config = with_folders(load_config(given.config, given.set), given)
    folder = run_folder(given.runs, Path(given.config).stem, config)
    train(config, folder, given.runs / "kept", device=given.device)
    print((folder / "scores.md").read_text() + f"in {folder}")


if __name__ == "__main__":
    main()
