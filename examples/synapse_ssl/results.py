"""What a finished run leaves: its scores, and what they were obtained with."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import monai
import torch
from torch import Tensor

import classbalance_losses
from examples.common.training import write_atomically
from examples.synapse_ssl.data.task import Task
from examples.synapse_ssl.engine import Engine


def finish(
    path: Path, engine: Engine, task: Task, class_counts: Tensor, scores: dict[str, Any]
) -> dict[str, Any]:
    """Write the metrics of a run and return them."""
    config = engine.config
    share = class_counts.double() / class_counts.sum()
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
        "training_seconds": round(engine.seconds, 1),
        "device": _device(engine.device),
        "commit": _commit(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "monai": monai.__version__,
            "classbalance_losses": classbalance_losses.__version__,
        },
    }
    text = json.dumps(metrics, indent=1) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text))
    return metrics


def table(metrics: dict[str, Any]) -> str:
    """A Markdown table of one run: Dice (%) and surface distance of each class."""
    scores = metrics["scores"]
    rows = [
        ["", "mean", *metrics["classes"][1:]],
        ["---", *["---:"] * len(metrics["classes"])],
        ["DSC", *_cells([scores["dsc"], *scores["dsc_per_class"]])],
        ["ASD", *_cells([scores["asd"], *scores["asd_per_class"]])],
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _cells(values: list[float | None]) -> list[str]:
    return ["–" if value is None else f"{value:.1f}" for value in values]


def _device(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{torch.get_num_threads()} CPU threads"
    )


def _commit() -> str:
    """The commit that the code is at, with "+changes" where files differ from it; "unknown" outside a checkout."""
    root = str(Path(__file__).parents[2])
    command = ["git", "-C", root, "describe", "--always", "--abbrev=12", "--dirty=+changes", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
