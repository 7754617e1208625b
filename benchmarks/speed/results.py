"""The result file of a machine: what was measured, by group, with the commit that each group was measured at."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.speed.measure import quartiles

FILE = "speed.json"
CHANGED = "+changes"
_DIGITS = 4


@dataclass
class Entry:
    """One case's result. Times are seconds, a number a round; ``status`` is timed, skipped, wrong or failed."""

    group: str
    family: str
    axis: str
    dtype: str
    task: str
    contender: str
    origin: str
    backend: str
    baseline: str
    pixels: int = 0
    classes: int = 0
    status: str = "timed"
    reason: str = ""
    forward: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)  # forward and backward
    baseline_forward: list[float] = field(default_factory=list)
    baseline_total: list[float] = field(default_factory=list)
    kept: int | None = None
    peak: int | None = None
    baseline_kept: int | None = None
    baseline_peak: int | None = None
    leaf_bytes: int = 0
    least_bytes: int = 0
    value_error: float | None = None
    gradient_error: float | None = None

    @property
    def timed(self) -> bool:
        """Whether there is a time to show."""
        return self.status == "timed"

    @property
    def ratio(self) -> tuple[float, float, float]:
        """Time over the baseline's, round by round: the lower quartile, the median, the upper quartile."""
        pairs = zip(self.total, self.baseline_total, strict=True)
        return quartiles([own / other for own, other in pairs])

    @property
    def milliseconds(self) -> tuple[float, float, float]:
        """Forward and backward: the quartiles."""
        low, middle, high = quartiles(self.total)
        return 1000 * low, 1000 * middle, 1000 * high

    @property
    def forward_milliseconds(self) -> float:
        """The forward pass, median."""
        return 1000 * quartiles(self.forward)[1]

    def as_dict(self) -> dict[str, Any]:
        """For the file: times rounded to four digits."""
        return {name: _rounded(value) for name, value in asdict(self).items()}


@dataclass
class Results:
    """A machine, its copy bandwidth in bytes a second, and the groups measured there."""

    machine: dict[str, Any]
    bandwidth: float
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)

    def done(self, group: str, commit: str) -> bool:
        """Whether a group was measured at this commit. Changes that are not committed are never known."""
        return CHANGED not in commit and group in self.groups and self.groups[group]["commit"] == commit

    def put(self, group: str, commit: str, entries: list[Entry]) -> None:
        """Store a group in the place of an older measurement of it."""
        self.groups[group] = {"commit": commit, "entries": [entry.as_dict() for entry in entries]}

    def entries(self, **wanted: str) -> Iterator[Entry]:
        """Every entry whose fields are as asked."""
        for group in self.groups.values():
            for values in group["entries"]:
                if all(values[name] == value for name, value in wanted.items()):
                    yield Entry(**values)

    def write(self, folder: Path) -> Path:
        """Write the file, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        path, draft = folder / FILE, folder / f".{FILE}"
        text = json.dumps(
            {"machine": self.machine, "bandwidth": _rounded(self.bandwidth), "groups": self.groups}
        )
        draft.write_text(text.replace('{"group"', '\n{"group"') + "\n")
        draft.replace(path)
        return path


def read_results(folder: Path) -> Results | None:
    """Read a machine's file, None where there is none."""
    path = folder / FILE
    return Results(**json.loads(path.read_text())) if path.is_file() else None


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return [_rounded(item) for item in value] if isinstance(value, list) else value
