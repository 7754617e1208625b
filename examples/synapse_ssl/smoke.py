"""Two methods on toy data, in a minute on a CPU: UA-MT with DyCE and DHC; validation, stop and resume, test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from examples.common.resumed import Metrics, check_resumed
from examples.common.training import CHECKPOINT, one_thread
from examples.synapse_ssl.config import Config, load_config
from examples.synapse_ssl.results import table
from examples.synapse_ssl.train import train

RUNS = {
    "UA-MT + DyCE": ('method="ua_mt"', 'supervised.pixel="DyCE"'),
    "DHC": ('method="dhc"', 'supervised.pixel="CE"'),
}


def smoke(overrides: Sequence[str] = (), *, device: str = "cpu") -> dict[str, dict[str, Any]]:
    """Train each method once in one go and once with a stop in the middle; print the scores and return the metrics.

    Raises:
        RuntimeError: the two runs differ, so resuming is not exact; or an unsupervised term was 0 throughout.
    """
    found = {}
    with TemporaryDirectory() as name, one_thread():
        for label, settings in RUNS.items():
            config = load_config("smoke", [*settings, *overrides])
            found[label] = _twice(label, config, Path(name) / config.method, device)
    return found


def _twice(label: str, config: Config, folder: Path, device: str) -> dict[str, Any]:
    whole, kept = folder / "whole", folder / "kept"
    metrics = train(config, whole, kept, device=device, progress=False)
    print(f"{label}, checkpoint {(whole / CHECKPOINT).stat().st_size / 2**20:.1f} MiB")

    def again(place: Path, stop_after: int) -> Metrics:
        return train(config, place, kept, device=device, stop_after=stop_after, progress=False)

    log = check_resumed(again, whole, config.training.iterations)
    if not any(row["unsupervised"] > 0 for row in log):
        raise RuntimeError(f"the unsupervised term of {label} was 0 in every step: it was not tried")
    print(table(metrics))
    return metrics
