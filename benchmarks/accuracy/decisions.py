"""How much of a loss's score is where its models decide: each class's logit less τ log π, τ chosen on training images.

τ > 0 decides for rare classes more often, as `adjust_logits` does, τ < 0 less often; τ = 0 is the model as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from benchmarks.accuracy.data import BenchmarkData, load_data
from benchmarks.accuracy.grid import Grid
from benchmarks.accuracy.plots import BASELINES
from benchmarks.accuracy.run import MODEL, is_finished, scores_entry, write_json
from benchmarks.accuracy.search import main_score
from benchmarks.accuracy.table import spread
from benchmarks.speed.table import table
from classbalance_losses.functional import adjust_logits
from examples.common.evaluation import LabelledImages, scores_from_confusion
from examples.common.models import build_model
from examples.common.provenance import commit

TAUS = tuple(round(step / 10, 1) for step in range(-12, 13))
_EVERY = 4  # one training image of so many chooses τ
_BATCH = 8


@torch.no_grad()
def scores_by_tau(
    model: nn.Module,
    images: LabelledImages,
    data: BenchmarkData,
    taus: Sequence[float] = TAUS,
    *,
    every: int = 1,
) -> dict[float, float]:
    """Return the main score by τ over one image of so many; the model is left in evaluation mode."""
    model.eval()
    classes = len(data.classes)
    confusion = {
        tau: MulticlassConfusionMatrix(classes, ignore_index=data.ignore_index, validate_args=False)
        for tau in taus
    }
    chosen = list(range(0, len(images), every))
    for start in range(0, len(chosen), _BATCH):
        samples = [images[i] for i in chosen[start : start + _BATCH]]
        batch, labels = (torch.stack(part) for part in zip(*samples, strict=True))
        logits = model(batch)
        if data.task == "binary":
            logits = torch.cat([torch.zeros_like(logits), logits], 1)
        for tau, of in confusion.items():
            of.update(_adjusted(logits, data.pixel_counts, tau).argmax(1), labels)
    return {
        tau: main_score(scores_entry(scores_from_confusion(of.compute()), data.structures))
        for tau, of in confusion.items()
    }


def _adjusted(logits: Tensor, counts: Tensor, tau: float) -> Tensor:
    prior = counts.clamp(min=1).double()
    return adjust_logits(logits, prior if tau >= 0 else 1 / prior, abs(tau))


def measure_decisions(grid: Grid, runs: Path, data_folder: Path | None) -> dict[str, Any]:
    """Return, of each loss's finished runs that have their weights still, the scores as they are and with their τ."""
    data = load_data(grid.data, data_folder, runs)
    test = next(iter(data.tests.values()))
    rows: dict[str, list[dict[str, float]]] = {}
    for label, config in grid.runs():
        weights = runs / config.folder_name / MODEL
        if is_finished(config, runs) and weights.is_file():
            model = build_model(data.logits, **config.model)
            model.load_state_dict(torch.load(weights, weights_only=True))
            of_training = scores_by_tau(model, data.train, data, every=_EVERY)
            tau = max(of_training, key=lambda tau: (of_training[tau], -abs(tau)))
            of_test = scores_by_tau(model, test, data, (0.0, tau))
            found = {"seed": config.seed, "tau": tau, "as_it_is": of_test[0.0], "with_tau": of_test[tau]}
            rows.setdefault(label, []).append(found)
    return {"commit": commit(), "losses": rows}


def decisions_path(folder: Path, name: str) -> Path:
    """Where a grid's decisions lie among its results."""
    return folder / "decisions" / f"{name}.json"


def write_decisions(grid: Grid, runs: Path, data_folder: Path | None, out: Path) -> Path:
    """Measure, and write the file.

    Raises:
        FileNotFoundError: no finished run has its weights.
    """
    path = decisions_path(out, grid.name)
    content = measure_decisions(grid, runs, data_folder)
    if not content["losses"]:
        raise FileNotFoundError(f"no finished run of {grid.name} in {runs} has its {MODEL}")
    write_json(path, content)
    return path


def decisions_section(folder: Path, name: str) -> list[str]:
    """The sentence and the table of a grid whose decisions were measured."""
    path = decisions_path(folder, name)
    if not path.is_file():
        return []
    losses: Mapping[str, list[dict[str, float]]] = json.loads(path.read_text())["losses"]
    base = next((label for label in BASELINES if label in losses), None)
    rows = [[label, *_row(of, [] if base in (None, label) else losses[base])] for label, of in losses.items()]
    return [
        "How much of it is where the models decide: the same models, each class's logit less τ log π, with π the "
        f"training pixels' shares and, of each run, the τ of {TAUS[0]:g} to {TAUS[-1]:g} that scores best on one "
        f"training image of {_EVERY}. {f'Leads are over {base} with its own τ, of the same seeds.' if base else ''}",
        table(["loss", "seeds", "as it is", "τ", "with τ", "lead"], rows),
    ]


def _row(of: list[dict[str, float]], base: list[dict[str, float]]) -> list[str]:
    before, after = (spread([run[key] for run in of]) for key in ("as_it_is", "with_tau"))
    tau = round(mean(run["tau"] for run in of), 1) + 0.0  # no minus before 0
    other = {run["seed"]: run["with_tau"] for run in base}
    leads = [run["with_tau"] - other[run["seed"]] for run in of if run["seed"] in other]
    return [str(len(of)), before, f"{tau:+.1f}", after, f"{mean(leads):+.1f}" if leads else ""]
