"""What a finished run leaves: its scores, and what they were obtained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import monai
from torch import Tensor

from examples.common.outcome import METRICS, TABLES
from examples.common.provenance import provenance
from examples.common.training import write_json, write_text
from examples.synapse_ssl.data.task import Task
from examples.synapse_ssl.engine import Engine


def finish(
    folder: Path, engine: Engine, task: Task, class_counts: Tensor, scores: dict[str, Any]
) -> dict[str, Any]:
    """Write the metrics of a run, and their table; return the metrics."""
    config = engine.config
    share = class_counts.double() / class_counts.sum()
    cost = provenance(engine.device, engine.seconds, ranks=1)
    metrics = {
        "note": config.note,
        "method": config.method,
        "pixel": config.supervised.pixel,
        "data": config.data.kind,
        "classes": list(task.classes),
        "labelled": list(task.labelled.names),
        "class_share": [float(f"{value:.6g}") for value in share.tolist()],  # of the labelled voxels
        "scores": scores,
        "tested_step": engine.best.get("step", engine.step),
        "validation_dsc": engine.best.get("dsc"),
        **cost,
        "versions": cost["versions"] | {"monai": monai.__version__},
    }
    write_text(folder / TABLES, f"{table(metrics)}\n")
    write_json(folder / METRICS, metrics)
    return metrics


def table(metrics: dict[str, Any]) -> str:
    """A Markdown table of one run: Dice (%), recall (%) and surface distance (voxels) of each class."""
    scores = metrics["scores"]
    rows = [
        ["", "mean", *metrics["classes"][1:]],
        ["---", *["---:"] * len(metrics["classes"])],
        *(
            [name, *_cells([scores[key], *scores[f"{key}_per_class"]])]
            for name, key in (("DSC", "dsc"), ("recall", "recall"), ("ASD", "asd"))
        ),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _cells(values: list[float | None]) -> list[str]:
    return ["–" if value is None else f"{value:.1f}" for value in values]
