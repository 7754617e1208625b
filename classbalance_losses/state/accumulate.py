"""The loop over a data loader: a progress bar, and a checkpoint to go on from after an interruption."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from classbalance_losses.state.statistics import ClassStatistics

SAVE_EVERY = 2.0  # seconds


def count_batches(
    statistics: ClassStatistics,
    loader: Iterable[Any],
    *,
    add: Callable[[ClassStatistics, Any], object],
    progress: bool,
    checkpoint: str | os.PathLike[str] | None,
    source: str,
) -> None:
    """Update ``statistics`` with every batch.

    ``add`` is ``add_labels``, or another way where the batches are counts already; ``source`` says in words what is
    counted, to tell checkpoints apart.
    """
    source += f", {statistics.num_classes} classes, ignore_index={statistics.ignore_index}"
    if statistics.task != "multiclass":
        source += f", task={statistics.task}"
    file = None if checkpoint is None else _Checkpoint(Path(checkpoint), source)
    done = 0 if file is None else file.load(statistics)
    batches = _with_bar(_rest(loader, done), loader, done) if progress else _rest(loader, done)
    if file is None:
        for batch in batches:
            add(statistics, batch)
        return
    with file:
        for number, batch in enumerate(batches, done + 1):
            add(statistics, batch)
            file.record(statistics, number)


def add_labels(statistics: ClassStatistics, batch: Any) -> None:
    """Count the labels of a batch, as a data loader yields it."""
    statistics.update(_labels(batch))


class _Checkpoint:
    """Keeps the counts after each batch in memory, and in a file every few seconds and on the way out."""

    def __init__(self, path: Path, source: str) -> None:
        if not path.parent.is_dir():
            raise ValueError(f"{path.parent}: no such folder to keep the checkpoint in.")
        self.path, self.source = path, source
        self.latest: dict[str, Any] | None = None
        self.saved_at = time.monotonic()

    def load(self, statistics: ClassStatistics) -> int:
        """Restore the counts, if there are any, and return the number of batches in them."""
        if not self.path.exists():
            return 0
        try:
            saved = torch.load(self.path, weights_only=True)
            source, done, state = saved["source"], int(saved["done"]), saved["state"]
        except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError) as error:
            raise ValueError(
                f"{self.path} is no checkpoint of ClassStatistics. Name another file, or delete this one."
            ) from error
        if source != self.source:
            raise ValueError(
                f"The checkpoint {self.path} was counting {source}; this is {self.source}. "
                "Name another file, or delete this one."
            )
        statistics.load_state_dict(state)
        return done

    def record(self, statistics: ClassStatistics, done: int) -> None:
        # A copy, so that an interruption in the middle of the next update does not save half of it.
        state = {name: count.clone() for name, count in statistics.state_dict().items()}
        self.latest = {"source": self.source, "done": done, "state": state}
        if time.monotonic() - self.saved_at > SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write beside the file and move it there: the file is never half written."""
        if self.latest is not None:
            part = self.path.with_name(self.path.name + ".part")
            torch.save(self.latest, part)
            part.replace(self.path)
            self.saved_at = time.monotonic()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.save()


def _rest(loader: Iterable[Any], done: int) -> Iterator[Any]:
    """Return what follows the first ``done`` batches; a sequence need not read those."""
    if isinstance(loader, Sequence):
        return (loader[number] for number in range(done, len(loader)))
    return islice(loader, done, None)


def _with_bar(batches: Iterator[Any], loader: Any, done: int) -> Iterable[Any]:
    try:
        from tqdm import tqdm  # noqa: PLC0415
    except ModuleNotFoundError:
        return batches
    total = len(loader) if isinstance(loader, Sized) else None
    bar: Iterable[Any] = tqdm(batches, total=total, initial=done)
    return bar


def _labels(batch: Any) -> Tensor:
    """Find the labels: the batch itself, or its second entry, or the one called "label" or "target"."""
    labels, place = batch, "batch"
    if isinstance(batch, Mapping):
        key = "label" if "label" in batch else "target"
        labels, place = batch.get(key), f"batch[{key!r}]"
    elif isinstance(batch, (tuple, list)) and batch:
        at = min(len(batch) - 1, 1)
        labels, place = batch[at], f"batch[{at}]"
    if isinstance(labels, Tensor):
        return labels
    is_array = hasattr(labels, "__array__")
    found = (
        f"a mapping of {', '.join(map(repr, batch))}"
        if isinstance(batch, Mapping) and not is_array
        else f"{type(labels).__name__} in {place}"
    )
    wrapped = f"torch.as_tensor({place})" if is_array else "batch[...]"
    raise TypeError(
        "Expected batches that are a label tensor, (input, target), or a dict with 'label' or 'target', "
        f"got {found}. Wrap the loader: ({wrapped} for batch in loader)."
    )
