"""Both methods with GBW for a few steps on small streets, EDAPS stopped and resumed: to the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from examples.common.resumed import Metrics, check_resumed
from examples.common.training import one_thread
from examples.uda_gbw.panoptic.config import load_config
from examples.uda_gbw.panoptic.methods import METHODS
from examples.uda_gbw.panoptic.train import quality, train


def smoke(overrides: Sequence[str] = (), *, device: str = "cpu") -> dict[str, dict[str, Any]]:
    """Train each method for a few steps, the last once more with a stop; print the scores, return all metrics.

    Raises:
        RuntimeError: the stopped run differs, so resuming is not exact.
    """
    found = {}
    with TemporaryDirectory() as name, one_thread():
        kept = Path(name) / "kept"
        for method in METHODS:
            config, place = load_config("smoke", [f'method="{method}"', *overrides]), Path(name) / method
            found[method] = train(config, place, kept, device=device, progress=False)
            for entry in found[method]["scores"].values():
                print(f"{method}: {quality(entry)}")

        def again(place: Path, stop_after: int) -> Metrics:
            return train(config, place, kept, device=device, stop_after=stop_after, progress=False)

        check_resumed(again, place, config.training.iterations, same=("scores", "weight_range"))
    return found
