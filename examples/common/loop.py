"""The loop over an engine's steps: logs, checkpoints to go on from, evaluation, a clean stop; for one rank or many.

It is the middle of each paper's `train(config, folder, kept, *, device, stop_after, progress)`, which carries a run out
in its `folder`, or goes on with it, and returns its metrics; a finished run is not repeated. Where a process group is
up, all ranks call `train`, each with its own device. They train as one process would on the joined batch; the first of
them writes. `folder` and `kept`, where runs share what is computed once, must be the same files to all of them.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from tqdm import tqdm

from examples.common.distributed import any_rank, rank
from examples.common.logs import Logs
from examples.common.meter import Engine as Stepping
from examples.common.meter import Meter
from examples.common.scenes.batches import ALONE, Share, Steps, Stream
from examples.common.training import CHECKPOINT, in_order, stop_request, write_atomically, write_json

Entries = dict[str, Any]  # {test set: scores}


class Engine(Stepping, Protocol):
    """What makes steps, and can be saved.

    `config.training` has `seed`, `workers`, `eval_every` and `checkpoint_every` too.
    """

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from it."""


class Outcome(NamedTuple):
    """How a loop ended: `finished` or stopped on request, with the last scores (empty: none) and the seconds."""

    finished: bool
    entries: Entries
    seconds: float


def restored(engine: Engine, folder: Path) -> float:
    """Load the folder's checkpoint where there is one, and return the seconds that its steps took.

    A new folder gets `config.json`, by the first rank.

    Raises:
        ValueError: the checkpoint cannot be read, or is of another configuration.
    """
    path = folder / CHECKPOINT
    if path.is_file():
        try:  # random states must stay on the CPU; load_state_dict moves the rest
            state = torch.load(path, weights_only=True, map_location="cpu")
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"{path} cannot be read, it may be cut short: put a copy back, or delete it to start over: {error}"
            ) from error
        engine.load_state_dict(state)
        return float(state.get("seconds", 0.0))
    if rank() == 0:
        write_json(folder / "config.json", engine.config.as_dict())
    return 0.0


def carry_out(
    engine: Engine,
    sources: Mapping[str, Stream],
    folder: Path,
    evaluate: Callable[[], Entries],
    *,
    share: Share = ALONE,
    device: str = "cpu",
    record: Callable[[Logs], None] | None = None,
    stop_after: int = 0,
    progress: bool = True,
) -> Outcome:
    """Carry out the steps that are left, from the folder's checkpoint. All ranks call this; the first one writes.

    Args:
        engine: what steps, as it starts.
        sources: the streams of a step's images.
        folder: of logs and checkpoints.
        evaluate: scores each test set; called every `training.eval_every` steps and at the end, by all ranks.
        share: what this rank takes of each batch.
        device: of the engine.
        record: called after every step with the logs, on the first rank alone.
        stop_after: stop after this step with a checkpoint; 0 goes on to the end.
        progress: show a progress bar.

    Raises:
        ValueError: the folder has a checkpoint that cannot be read, or of another configuration.
        OSError: a checkpoint cannot be written; the former one is whole.
        FloatingPointError: the loss of a logged step is not finite.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when the running step is finished and saved.
    """
    recipe, first = engine.config.training, rank() == 0
    seconds = spent = restored(engine, folder)
    steps = Steps(sources, recipe.seed, engine.step, recipe.iterations, share)
    entries: Entries = {}
    last = recipe.iterations
    with (
        stop_request() as stop,
        Logs(folder, engine.step) if first else nullcontext() as logs,
        tqdm(total=last, initial=engine.step, disable=not (progress and first)) as bar,
    ):
        meter = Meter(engine, logs, seconds)
        for batch in in_order(steps, recipe.workers, device):
            meter.advance(batch)
            bar.update()
            done = engine.step == last
            if logs is not None and record is not None:
                record(logs)
            if done or (recipe.eval_every and engine.step % recipe.eval_every == 0):
                with meter.pause():
                    entries = evaluate()
                    _log_scores(logs, engine.step, entries)
            interrupted = any_rank(stop.is_set())
            stopping = interrupted or engine.step == stop_after
            if done or stopping or engine.step % recipe.checkpoint_every == 0:
                with meter.pause() as spent:
                    save(engine, folder, spent)
            if interrupted and not done:
                raise KeyboardInterrupt(f"stopped after step {engine.step}; run again to go on from there")
            if stopping and not done:
                return Outcome(False, {}, spent)
    # A run may have been ended between its last checkpoint and its metrics.
    return Outcome(True, entries or evaluate(), spent)


def save(engine: Engine, folder: Path, seconds: float) -> None:
    """Write the checkpoint; all ranks have a part in it, the first one writes.

    It is put together in memory: on a full disk torch's own writer raises a RuntimeError.

    Raises:
        OSError: it cannot be written, on a full disk for one. The checkpoint before it is as it was.
    """
    state = engine.state_dict() | {"seconds": seconds}
    if rank() > 0:
        return
    content = io.BytesIO()
    torch.save(state, content)
    try:
        write_atomically(folder / CHECKPOINT, lambda path: path.write_bytes(content.getbuffer()))
    except OSError as error:
        raise OSError(
            error.errno,
            f"the checkpoint of step {engine.step} could not be written: {error.strerror}. The one before it is whole: "
            f"make room for {content.tell() / 2**20:.0f} MiB and run again to go on from there",
            str(folder / CHECKPOINT),
        ) from error


def _log_scores(logs: Logs | None, step: int, entries: Entries) -> None:
    if logs is not None:
        for name, entry in entries.items():
            logs.write(f"scores_{name}", step, entry["mean_iou"])
