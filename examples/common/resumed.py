"""The promise of exact resuming, put to the test on a short run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.common.logs import read_log

Metrics = Mapping[str, Any]
_COST = ("images_per_second", "peak_memory_mib")


def check_resumed(
    train: Callable[[Path, int], Metrics], whole: Path, steps: int, *, same: Sequence[str] = ("scores",)
) -> list[dict[str, float]]:
    """Carry a finished run out once more with a stop in the middle; say so, and return the log, costs left out.

    Args:
        train: carries the run out in a folder, or goes on there, up to a step (0: to the end); returns its metrics.
        whole: the folder where it was carried out in one go.
        steps: of the run.
        same: what of the metrics has to be equal, beside the log.

    Raises:
        RuntimeError: the two differ, so resuming is not exact.
    """
    half, parts = steps // 2, whole.with_name(f"{whole.name}-resumed")
    train(parts, half)
    again, metrics = train(parts, 0), train(whole, 0)
    log, resumed = (_log(folder) for folder in (whole, parts))
    if log != resumed or any(again[key] != metrics[key] for key in same):
        raise RuntimeError(f"a run that was stopped after step {half} went another way: {log} and {resumed}")
    print(f"{steps} steps, loss {log[0]['loss']:.3f} to {log[-1]['loss']:.3f};")
    print(f"stopped after step {half} and resumed: the same {', '.join(['losses', *same])}\n")
    return log


def _log(folder: Path) -> list[dict[str, float]]:
    rows = read_log(folder / "log.csv")
    return [{key: value for key, value in row.items() if key not in _COST} for row in rows]
