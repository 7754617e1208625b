"""Files of labels: found under a folder, and counted one at a time or several at a time."""

from __future__ import annotations

import json
import os
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from classbalance_losses.stats.counting import MULTILABEL, FileCounts, Rules
from classbalance_losses.stats.errors import LabelFileError
from classbalance_losses.stats.reading import KEY, SUFFIXES, kind_of

AHEAD = 4  # files a worker that are counted before their turn: one long file does not make the others wait


class Dataset(NamedTuple):
    """What a ``dataset.json`` says about the labels."""

    path: Path
    classes: list[str]
    ignore_index: int | None


class LabelFiles(Sequence[FileCounts]):
    """The counts of a list of files, each counted when it is asked for."""

    def __init__(self, paths: list[Path], rules: Rules) -> None:
        self.paths, self.rules = paths, rules

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        return self.rules.count(self.paths[index])

    def describe(self) -> str:
        """Say which files these are and how they are counted, to tell one checkpoint from another."""
        checksum = zlib.crc32("\n".join(map(str, self.paths)).encode())
        parts = [f"{len(self)} label files (checksum {checksum:08x})"]
        if self.rules.object_label is not None:
            parts.append(f"object {self.rules.object_label}")
        if self.rules.colours is not None:
            colours = repr((self.rules.colours.classes, self.rules.ignore_unknown))
            parts.append(f"colours (checksum {zlib.crc32(colours.encode()):08x})")
        if self.rules.task == MULTILABEL:
            parts.append("several labels a pixel")
        if self.rules.key != KEY:
            parts.append(f"arrays {self.rules.key!r}")
        return ", ".join(parts)


class _Ahead(Sequence[FileCounts]):
    """A sequence that is asked for in order, and whose next items are made meanwhile by other threads.

    Threads, not processes: decoding and counting let each other run, and nothing has to be imported again.
    """

    def __init__(self, files: LabelFiles, pool: ThreadPoolExecutor, ahead: int) -> None:
        self.files, self.pool, self.ahead = files, pool, ahead
        self.started: deque[Future[FileCounts]] = deque()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        first = index + len(self.started)
        for number in range(first, min(index + self.ahead, len(self.files))):
            self.started.append(self.pool.submit(self.files.__getitem__, number))
        return self.started.popleft().result()


@contextmanager
def counted_by(workers: int, files: LabelFiles) -> Iterator[Sequence[FileCounts]]:
    """Count with so many threads; one is the caller's own."""
    if workers == 1:
        yield files
        return
    pool = ThreadPoolExecutor(workers)
    try:
        yield _Ahead(files, pool, AHEAD * workers)
    finally:
        pool.shutdown(cancel_futures=True)


def find_labels(folder: Path) -> list[Path]:
    """Return the label files under ``folder``, sorted.

    Raises:
        LabelFileError: there is no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise LabelFileError(f"{folder}: no such folder.")
    paths = sorted(path for path in _files_under(folder) if kind_of(path) and path.is_file())
    if not paths:
        first, *others = SUFFIXES
        raise LabelFileError(f"{folder}: holds no {first} and no {', '.join(others)} files, at any depth.")
    return paths


def _files_under(folder: Path) -> Iterator[Path]:
    """Yield all files at any depth, in folders that are links too, each folder once."""
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (Path(parent) / name for name in files)


def find_dataset(folder: Path) -> Dataset | None:
    """Return what the nearest ``dataset.json`` that names classes says, in ``folder`` or above it."""
    for parent in (folder.resolve(), *folder.resolve().parents):
        path = parent / "dataset.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict):
            classes, ignore_index = _described(content)
            if len(classes) > 1:
                return Dataset(path, classes, ignore_index if _is_label(ignore_index) else None)
    return None


def _described(content: dict[str, Any]) -> tuple[list[str], Any]:
    """Return the names of the classes, in order, and the ignored label.

    They are ``{"classes": [name], "ignore_index": label}``, nnU-Net's ``{"labels": {name: label, "ignore": label}}``
    or the Medical Segmentation Decathlon's ``{"labels": {"label": name}}``.
    """
    classes, labels = content.get("classes"), content.get("labels")
    if isinstance(classes, list) and all(isinstance(name, str) for name in classes):
        return classes, content.get("ignore_index")
    named = dict(labels) if isinstance(labels, dict) else {}
    ignore_index = named.pop("ignore", None)
    if all(isinstance(name, str) and label.isdigit() for label, name in named.items()):
        named = {name: int(label) for label, name in named.items()}
    is_whole = all(map(_is_label, named.values())) and sorted(named.values()) == list(range(len(named)))
    return sorted(named, key=named.__getitem__) if is_whole else [], ignore_index


def _is_label(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
