"""Logs of a run: CSV files, and TensorBoard where it is installed. A resumed run goes on in the same files."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from examples.common.training import write_atomically


class Logs:
    """Rows of numbers against steps: `FOLDER/NAME.csv` for each name, and `FOLDER/tensorboard`.

    Args:
        folder: the run's folder.
        step: the step that training goes on from; rows after it are dropped, they will come again.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._folder, self._step, self._writer = folder, step, _tensorboard(folder / "tensorboard", step)
        self._started: set[str] = set()

    def __enter__(self) -> Logs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Append a row; the first row of a file decides its columns."""
        path = self._folder / f"{name}.csv"
        if name not in self._started:
            self._started.add(name)
            _start(path, ["step", *values], self._step)
        with path.open("a", newline="") as file:
            csv.writer(file).writerow([step, *values.values()])
        if self._writer is not None:
            for key, value in values.items():
                self._writer.add_scalar(f"{name}/{key}", value, step)


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of a CSV file, as numbers."""
    with path.open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def _start(path: Path, columns: list[str], step: int) -> None:
    """Write the head of a new file, or drop an old one's rows after `step`."""
    rows = []
    if path.is_file():
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) <= step]

    def save(partial: Path) -> None:
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, save)


def _tensorboard(folder: Path, step: int) -> Any:
    if find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

    return SummaryWriter(str(folder), purge_step=step + 1)
