"""What a step costs with each loss of a grid: its time, in turns with the others, and the memory that it holds.

Network, loss and the gradients of both, on one batch; the optimizer's step is the same for all, and left out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.accuracy.data import load_data
from benchmarks.accuracy.grid import Grid
from benchmarks.accuracy.losses import build_loss
from benchmarks.accuracy.run import write_json
from benchmarks.speed.measure import step_memory
from benchmarks.speed.table import table
from examples.common.models import build_model
from examples.common.provenance import commit, device_name
from examples.common.training import TrainingConfig, sample_batch

_ROUNDS = 25


def measure_cost(
    grid: Grid, data_folder: Path | None, cache: Path, *, rounds: int = _ROUNDS
) -> dict[str, Any]:
    """Return, of each loss, the median milliseconds of a step, and MiB at its peak and between its two passes."""
    device = torch.device(grid.device)
    data = load_data(grid.data, data_folder, cache).to(device)
    torch.manual_seed(0)
    model = build_model(data.logits, **grid.model)
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, labels = sample_batch(data.train, TrainingConfig(**grid.training), 0)

    def step_of(spec: dict[str, Any]) -> Callable[[], Tensor]:
        loss = build_loss(spec, data).to(device)

        def step() -> Tensor:
            value: Tensor = loss(model(images), labels)
            return value

        return step

    steps = {label: step_of(spec) for label, spec in zip(grid.labels, grid.losses, strict=True)}
    times: dict[str, list[float]] = {label: [] for label in steps}
    for turn in range(rounds + 2):
        for label, step in steps.items():
            model.zero_grad(set_to_none=True)
            seconds = _seconds(step, device)
            if turn >= 2:  # the first ones compile, and fill caches
                times[label].append(seconds)
    rows = {}
    for label, step in steps.items():
        model.zero_grad(set_to_none=True)
        memory = step_memory(step, device.type)
        rows[label] = {
            "ms": round(1e3 * median(times[label]), 2),
            "peak": round(memory.peak / 2**20, 1),
            "kept": round(memory.kept / 2**20, 1),
        }
    where = {"device": device_name(device), "threads": torch.get_num_threads(), "commit": commit()}
    return where | {"batch": list(images.shape), "losses": rows}


def _seconds(step: Callable[[], Tensor], device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    wait()
    before = time.perf_counter()
    step().backward()
    wait()
    return time.perf_counter() - before


def cost_path(folder: Path, name: str) -> Path:
    """Where a grid's costs lie among its results."""
    return folder / "costs" / f"{name}.json"


def write_cost(grid: Grid, data_folder: Path | None, cache: Path, out: Path) -> Path:
    """Measure, and write the file."""
    path = cost_path(out, grid.name)
    write_json(path, measure_cost(grid, data_folder, cache))
    return path


def cost_section(folder: Path, name: str) -> list[str]:
    """The sentence and the table of a grid whose costs were measured."""
    path = cost_path(folder, name)
    if not path.is_file():
        return []
    cost = json.loads(path.read_text())
    first = next(iter(cost["losses"].values()))
    rows = [
        [label, f"{of['ms']:.1f}", f"{of['ms'] / first['ms']:.2f}", f"{of['peak']:.0f}", f"{of['kept']:.0f}"]
        for label, of in cost["losses"].items()
    ]
    return [
        f"A training step of network and loss, without the optimizer, on images {tuple(cost['batch'])}: the median of "
        f"turns taken with the other losses, and the memory beyond weights and images. {cost['device']}, "
        f"{cost['threads']} threads, commit {cost['commit'][:9]}.",
        table(["loss", "ms", "over the first", "peak, MiB", "between the passes, MiB"], rows),
    ]
