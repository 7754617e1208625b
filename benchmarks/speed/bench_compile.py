"""The per-pixel losses under `torch.compile`, beside compiled `F.cross_entropy`, and beside themselves as they are."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

from benchmarks.speed import inputs
from benchmarks.speed.case import Build, Case
from benchmarks.speed.contenders import CROSS_ENTROPY, FAST, compiled
from benchmarks.speed.settings import Settings, label
from benchmarks.speed.tasks import Task, pixel_task

TASKS = ("cross-entropy", "focal", "DyCE", "GBW")
BASELINE = compiled(CROSS_ENTROPY)


def cases(settings: Settings) -> Iterator[Case]:
    """At the main shape, in float32: compiling takes seconds a contender."""
    shape = settings.main_shape
    build = Build(inputs.pixels, (shape, "float32", settings.device))
    pixels = shape[0] * prod(shape[2:])
    for task in map(_task, TASKS):
        for contender in task.contenders:
            yield Case(
                "compile", "compile", label(shape), "float32", task, contender, build, pixels, shape[1]
            )


def _task(name: str) -> Task:
    task = pixel_task(name)
    noise = (BASELINE,) if name == TASKS[0] else ()  # once is enough
    eager = (contender for contender in task.own if contender.backend in FAST)
    contenders = (*noise, *eager, *map(compiled, task.own))
    return Task(task.name, task.truth, contenders, BASELINE, task.chosen)


def bench_compile(run_case: Any, case: Case) -> None:
    run_case(case)
