"""What a finished run leaves in its folder: its metrics, and the tables of its scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.common.config import run_folder
from examples.common.scoring import scores_table
from examples.common.training import write_json, write_text

METRICS = "metrics.json"  # exists when the run is finished
TABLES = "scores.md"


def write_outcome(folder: Path, metrics: Mapping[str, Any], main: Sequence[int]) -> None:
    """Write the tables, then the metrics.

    Args:
        folder: of the run.
        metrics: plain data, with `classes`, and `scores` of each test set as `scoring.scores_entry` has them.
        main: the classes whose IoU the tables have.
    """
    tables = [
        f"{name}\n\n{scores_table(entry, metrics['classes'], main)}\n\n"
        for name, entry in metrics["scores"].items()
    ]
    write_text(folder / TABLES, "".join(tables))
    write_json(folder / METRICS, metrics)


def read_metrics(folder: Path) -> dict[str, Any]:
    """The metrics of a finished run."""
    metrics: dict[str, Any] = json.loads((folder / METRICS).read_text())
    return metrics


def finished_run(runs: Path, name: str, config: Any) -> dict[str, Any] | None:
    """The metrics of a configuration's run; None where it is not finished."""
    folder = run_folder(runs, name, config.as_dict())
    return read_metrics(folder) if (folder / METRICS).is_file() else None
