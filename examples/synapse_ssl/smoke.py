"""Two methods on toy data, in a minute on a CPU: UA-MT with DyCE and DHC; validation, stop and resume, test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from examples.common.logs import read_log
from examples.common.training import CHECKPOINT, one_thread
from examples.synapse_ssl.config import Config, load_config
from examples.synapse_ssl.results import table
from examples.synapse_ssl.train import train

RUNS = {
    "UA-MT + DyCE": ('method="ua_mt"', 'supervised.pixel="DyCE"'),
    "DHC": ('method="dhc"', 'supervised.pixel="CE"'),
}
_COSTS = ("images_per_second", "peak_memory_mib")


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
    whole, parts, kept = folder / "whole", folder / "parts", folder / "kept"
    metrics = train(config, whole, kept, device=device, progress=False)
    half = config.training.iterations // 2
    train(config, parts, kept, device=device, stop_after=half, progress=False)
    again = train(config, parts, kept, device=device, progress=False)
    log, resumed = ([_without_costs(row) for row in read_log(run / "log.csv")] for run in (whole, parts))
    if log != resumed or metrics["scores"] != again["scores"]:
        raise RuntimeError(f"{label}, stopped after step {half}, went another way: {log} and {resumed}")
    if not any(row["unsupervised"] > 0 for row in log):
        raise RuntimeError(f"the unsupervised term of {label} was 0 in every step: it was not tried")
    size = (whole / CHECKPOINT).stat().st_size / 2**20
    print(f"{label}: {config.training.iterations} steps, loss {log[0]['loss']:.3f} to {log[-1]['loss']:.3f}")
    print(f"checkpoint {size:.1f} MiB; stopped after step {half} and resumed: the same losses and scores\n")
    print(table(metrics))
    return metrics


def _without_costs(row: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in row.items() if key not in _COSTS}
