"""The promise of exact resuming, put to the test on a short run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.common.logs import read_log
from examples.common.outcome import TABLES
from examples.common.training import CHECKPOINT

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


def run_twice(
    train: Callable[..., Metrics], config: Any, folder: Path, kept: Path, *, device: str
) -> tuple[Metrics, list[dict[str, float]]]:
    """Carry a run out in one go, print its tables, and once more with a stop in the middle: its metrics, and the log.

    Args:
        train: of a paper.
        config: the run.
        folder: of both.
        kept: where runs share what is computed once.
        device: of torch.

    Raises:
        RuntimeError: the two differ, so resuming is not exact.
    """

    def carry_out(place: Path, stop_after: int) -> Metrics:
        metrics: Metrics = train(config, place, kept, device=device, stop_after=stop_after, progress=False)
        return metrics

    whole = folder / "whole"
    metrics = carry_out(whole, 0)
    print((whole / TABLES).read_text())
    print(f"checkpoint {(whole / CHECKPOINT).stat().st_size / 2**20:.1f} MiB")
    return metrics, check_resumed(carry_out, whole, config.training.iterations)


def _log(folder: Path) -> list[dict[str, float]]:
    rows = read_log(folder / "log.csv")
    return [{key: value for key, value in row.items() if key not in _COST} for row in rows]
