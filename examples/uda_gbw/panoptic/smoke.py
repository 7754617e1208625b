"""A few steps on small streets with GBW, stopped and resumed: everything runs, and to the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from examples.common.resumed import Metrics, check_resumed
from examples.common.training import one_thread
from examples.uda_gbw.panoptic.config import load_config
from examples.uda_gbw.panoptic.train import train


def smoke(overrides: Sequence[str] = (), *, device: str = "cpu") -> dict[str, Any]:
    """Train for a few steps, and once more with a stop; print the scores, return the metrics.

    Raises:
        RuntimeError: the stopped run differs, so resuming is not exact.
    """
    config = load_config("smoke", overrides)
    with TemporaryDirectory() as name, one_thread():
        whole = Path(name) / "whole"
        metrics = train(config, whole, device=device, progress=False)

        def again(place: Path, stop_after: int) -> Metrics:
            return train(config, place, device=device, stop_after=stop_after, progress=False)

        check_resumed(again, whole, config.training.iterations, same=("scores", "weight_range"))
    quality = ", ".join(
        f"{key} {100 * value:.1f} %" for key, value in metrics["scores"]["panoptic"]["all"].items()
    )
    print(quality)
    return metrics
