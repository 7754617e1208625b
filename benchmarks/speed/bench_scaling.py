"""Time against the number of pixels and against the number of classes."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

from benchmarks.speed import inputs
from benchmarks.speed.case import Build, Case
from benchmarks.speed.settings import Settings, Shape, label
from benchmarks.speed.tasks import Task, pixel_task

TASKS = ("cross-entropy", "focal", "DyCE", "GBW")


def cases(settings: Settings) -> Iterator[Case]:
    """The library on every backend, and the baseline against itself, in float32."""
    sweeps = {"pixels": settings.pixel_sweep, "classes": settings.class_sweep}
    for sweep, shapes in sweeps.items():
        for shape in shapes:
            for task in map(pixel_task, TASKS):
                yield from _sized(f"scaling, {sweep}", shape, task, settings)


def _sized(family: str, shape: Shape, task: Task, settings: Settings) -> Iterator[Case]:
    baseline = [task.baseline] if task.name == TASKS[0] else []
    for contender in [*baseline, *task.own]:
        build = Build(inputs.pixels, (shape, "float32", settings.device))
        pixels = shape[0] * prod(shape[2:])
        yield Case("scaling", family, label(shape), "float32", task, contender, build, pixels, shape[1])


def bench_scaling(run_case: Any, case: Case) -> None:
    run_case(case)
