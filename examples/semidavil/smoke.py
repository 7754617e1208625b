"""The whole pipeline on toy data, in a minute on a CPU: both streams, captions, guidance, consistency, EMA, resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from examples.common.resumed import run_twice
from examples.common.scenes.toy import write_street_folder
from examples.common.training import one_thread
from examples.semidavil.config import load_config
from examples.semidavil.train import train


def smoke(overrides: Sequence[str] = (), *, device: str = "cpu") -> list[dict[str, float]]:
    """Train on toy data, once in one go and once with a stop in the middle; print the scores and return the log.

    Raises:
        RuntimeError: the two runs differ, so resuming is not exact; or no pixel was ever confident.
    """
    with TemporaryDirectory() as name, one_thread():
        folder = Path(name)
        config = load_config("smoke", overrides)
        target = write_street_folder(folder / "target", size=(48, 64), train=8, test=2)
        config = replace(config, data=replace(config.data, target=str(target)))
        _, log = run_twice(train, config, folder, folder / "kept", device=device)
        if config.components.consistency and not any(row["consistency"] > 0 for row in log):
            raise RuntimeError("no pixel was confident in any step: consistency was not tried")
        return log
