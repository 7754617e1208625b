"""The whole pipeline on toy data, in a minute on a CPU: every loss, both kinds of queries, consistency, resume."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from examples.common.logs import read_log
from examples.common.outcome import METRICS
from examples.common.scenes.toy import write_street_folder
from examples.common.training import one_thread
from examples.hvl.config import load_config
from examples.hvl.train import train

_COST = ("images_per_second", "peak_memory_mib")


def smoke(overrides: Sequence[str] = (), *, device: str = "cpu") -> list[dict[str, float]]:
    """Train on toy data, once in one go and once with a stop in the middle; print the scores and return the log.

    Raises:
        RuntimeError: the two runs differ, so resuming is not exact; or no pixel was ever confident.
    """
    with TemporaryDirectory() as name, one_thread():
        folder = Path(name)
        config = load_config("smoke", overrides)
        data = write_street_folder(folder / "data", size=(48, 64), train=8, test=2)
        config = replace(config, data=replace(config.data, folder=str(data)))
        whole, parts, kept = folder / "whole", folder / "parts", folder / "kept"
        train(config, whole, kept, device=device)
        half = config.training.iterations // 2
        train(config, parts, kept, device=device, stop_after=half, progress=False)
        train(config, parts, kept, device=device, progress=False)
        log, resumed = (
            [
                {key: value for key, value in row.items() if key not in _COST}
                for row in read_log(run / "log.csv")
            ]
            for run in (whole, parts)
        )
        scores, again = (json.loads((run / METRICS).read_text())["scores"] for run in (whole, parts))
        if log != resumed or scores != again:
            raise RuntimeError(
                f"a run that was stopped after step {half} went another way: {log} and {resumed}"
            )
        if "consistency" in log[0] and not any(row["consistency"] > 0 for row in log):
            raise RuntimeError("no pixel was confident in any step: consistency was not tried")
        print((whole / "scores.md").read_text())
        print(f"{len(log)} steps, loss {log[0]['loss']:.3f} to {log[-1]['loss']:.3f};")
        print(f"stopped after step {half} and resumed: the same losses and scores")
        return log
