"""Two methods on toy data, in a minute on a CPU: UA-MT with DyCE and DHC; validation, stop and resume, test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from examples.common.resumed import run_twice
from examples.common.training import one_thread
from examples.synapse_ssl.config import load_config
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
            print(label)
            place = Path(name) / config.method
            found[label], log = run_twice(train, config, place, place / "kept", device=device)
            if not any(row["unsupervised"] > 0 for row in log):
                raise RuntimeError(f"the unsupervised term of {label} was 0 in every step: it was not tried")
    return found
