"""A few steps on small streets with GBW, stopped and resumed: everything runs, and to the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from examples.common.logs import read_log
from examples.common.training import one_thread
from examples.uda_gbw.panoptic.config import load_config
from examples.uda_gbw.panoptic.train import train

_COST = ("images_per_second", "peak_memory_mib")


def smoke(overrides: Sequence[str] = (), *, device: str = "cpu") -> dict[str, Any]:
    """Train for a few steps, and once more with a stop; print the scores, return the metrics.

    Raises:
        RuntimeError: the stopped run differs, so resuming is not exact.
    """
    config = load_config("smoke", overrides)
    with TemporaryDirectory() as name, one_thread():
        whole, parts = Path(name) / "whole", Path(name) / "parts"
        metrics = train(config, whole, device=device, progress=False)
        half = config.training.iterations // 2
        train(config, parts, device=device, stop_after=half, progress=False)
        again = train(config, parts, device=device, progress=False)
        logs = [
            [
                {key: value for key, value in row.items() if key not in _COST}
                for row in read_log(run / "log.csv")
            ]
            for run in (whole, parts)
        ]
    if logs[0] != logs[1] or any(again[key] != metrics[key] for key in ("scores", "weight_range")):
        raise RuntimeError(
            f"a run that was stopped after step {half} went another way: {logs[0]} and {logs[1]}"
        )
    quality = ", ".join(
        f"{key} {100 * value:.1f} %" for key, value in metrics["scores"]["panoptic"]["all"].items()
    )
    print(f"loss {logs[0][0]['loss']:.3f} to {logs[0][-1]['loss']:.3f}, {quality}")
    print(f"stopped after step {half} and resumed: the same losses, class weights and scores")
    return metrics
