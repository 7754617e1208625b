"""One run: train with one loss and one seed, score, write its folder. Finished runs are kept.

RUNS/NAME/config.json    what was run
RUNS/NAME/log.jsonl      loss, learning rate, class weights, scores against steps
RUNS/NAME/metrics.json   scores, `quality`, the commit, the versions and the device; it exists when the run is finished
RUNS/NAME/model.pt       the final weights
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.accuracy.data import BenchmarkData, load_data, pixel_shares
from benchmarks.accuracy.grid import RunConfig
from benchmarks.accuracy.losses import build_loss
from benchmarks.accuracy.quality import quality
from examples.common.evaluation import Scores, evaluate
from examples.common.models import build_model
from examples.common.provenance import commit, cuda_entry, device_name, versions
from examples.common.training import CHECKPOINT, TrainingConfig, train, write_atomically

METRICS = "metrics.json"
MODEL = "model.pt"
PROGRESS = "progress.txt"
_BATCH = 8


def is_finished(config: RunConfig, runs: Path) -> bool:
    """Whether this run's scores are there already."""
    return (runs / config.folder_name / METRICS).is_file()


def execute(config: RunConfig, runs: Path, data_folder: Path | None) -> dict[str, Any]:
    """Carry a run out, or go on with it, and return its metrics."""
    folder = runs / config.folder_name
    if is_finished(config, runs):
        return read_metrics(folder)
    write_json(folder / "config.json", config.as_dict())
    device = torch.device(config.device)
    data = load_data(config.data, data_folder, runs).to(device)
    torch.manual_seed(config.seed)
    # On the CPU first: a seed's weights are the same anywhere.
    model = build_model(data.logits, **config.model)
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    loss = build_loss(config.loss, data).to(device)
    main_test = next(iter(data.tests))
    train(
        model,
        loss,
        data.train,
        TrainingConfig(**config.training, seed=config.seed),
        folder,
        evaluate=lambda model: scores_entry(_evaluate(model, data, main_test), data.structures),
        progress=sys.stderr.isatty(),
        on_step=lambda step: _report(folder, step),
    )
    metrics = {
        "classes": list(data.classes),
        "train_pixel_share": pixel_shares(data.pixel_counts),
        "scores": {name: scores_entry(_evaluate(model, data, name), data.structures) for name in data.tests},
        "quality": quality(
            model,
            data.tests[main_test],
            num_classes=len(data.classes),
            ignore_index=data.ignore_index,
            batch_size=_BATCH,
        ),
        "commit": commit(),
        "versions": versions() | {"numpy": np.__version__},
        "device": {"type": device.type, "name": device_name(device)} | cuda_entry(device),
    }
    write_atomically(folder / MODEL, lambda path: torch.save(model.state_dict(), path))
    write_json(folder / METRICS, metrics)
    (folder / CHECKPOINT).unlink()  # the optimizer's state is of no use any more
    (folder / PROGRESS).unlink(missing_ok=True)
    return metrics


def scores_entry(scores: Scores, structures: Sequence[int] = ()) -> dict[str, Any]:
    """Scores as plain data, None for the IoU of a class that does not occur; of structures their mean Dice too."""
    dice = [2 * iou / (1 + iou) for iou in (scores.iou[c] for c in structures) if not math.isnan(iou)]
    return {
        **({"mean_dice": sum(dice) / len(dice)} if dice else {}),
        "mean_iou": scores.mean_iou,
        "iou": _or_none(scores.iou),
        "precision": _or_none(scores.precision),
        "recall": _or_none(scores.recall),
        "pixel_accuracy": scores.pixel_accuracy,
    }


def _or_none(values: tuple[float, ...]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]


def read_metrics(folder: Path) -> dict[str, Any]:
    """The metrics of a finished run."""
    metrics: dict[str, Any] = json.loads((folder / METRICS).read_text())
    return metrics


def write_json(path: Path, content: Any) -> None:
    """Write JSON that a person can read, all of it or nothing."""
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text))


def _evaluate(model: nn.Module, data: BenchmarkData, test: str) -> Scores:
    return evaluate(
        model,
        data.tests[test],
        num_classes=len(data.classes),
        ignore_index=data.ignore_index,
        batch_size=_BATCH,
    )


def _report(folder: Path, step: int) -> None:
    (folder / PROGRESS).write_text(str(step))


def main(arguments: list[str]) -> None:
    """The process of one run: CONFIG.json RUNS [DATA]."""
    config = RunConfig(**json.loads(Path(arguments[0]).read_text()))
    execute(config, Path(arguments[1]), Path(arguments[2]) if len(arguments) > 2 else None)


if __name__ == "__main__":
    main(sys.argv[1:])
