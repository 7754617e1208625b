"""Logits at low resolution, labels at full: interpolate first, or inside the loss."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

from benchmarks.speed import inputs
from benchmarks.speed.case import Build, Case
from benchmarks.speed.contenders import BACKENDS, INTERPOLATED, Contender, ours, ours_interpolated
from benchmarks.speed.settings import Settings, label
from benchmarks.speed.tasks import Task, pixel_task

LOSSES = {"cross-entropy": "WeightedCrossEntropyLoss", "DyCE": "DyCELoss"}


def cases(settings: Settings) -> Iterator[Case]:
    """Each loss after `F.interpolate` and with the interpolation inside, on every backend."""
    for shape, size in settings.upsample_shapes:
        axis = f"{label(shape)} to {label(size)}"
        for name in LOSSES:
            task = _task(name)
            for contender in task.contenders:
                build = Build(inputs.pixels, (shape, "float32", settings.device, size))
                pixels = shape[0] * prod(size)
                yield Case("upsample", "upsample", axis, "float32", task, contender, build, pixels, shape[1])


def _task(name: str) -> Task:
    task = pixel_task(name)
    both: list[Contender] = [INTERPOLATED] if name == "cross-entropy" else []
    for backend in BACKENDS:
        inside = ours(LOSSES[name], backend, title=f"{LOSSES[name]} with upsampling inside")
        both += [ours_interpolated(LOSSES[name], backend), inside]
    return Task(task.name, task.truth, tuple(both), INTERPOLATED, task.chosen)


def bench_upsample(run_case: Any, case: Case) -> None:
    run_case(case)
