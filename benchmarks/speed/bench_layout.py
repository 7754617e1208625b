"""The per-pixel losses on logits of float16, and on logits whose classes lie side by side in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import prod
from typing import Any

from torch import Tensor

from benchmarks.speed import inputs
from benchmarks.speed.case import Build, Case
from benchmarks.speed.contenders import FAST, Contender, Step
from benchmarks.speed.settings import Settings, label
from benchmarks.speed.tasks import Task, pixel_task

TASKS = ("cross-entropy", "focal", "DyCE", "GBW")
KINDS = (
    ("float16", False),
    ("float32", True),
    ("bfloat16", True),
)  # the dtype, and whether channels are last
SCALE = 2.0**16  # of the loss, as torch.amp.GradScaler's: a pixel's part of a mean is nothing in float16


def cases(settings: Settings) -> Iterator[Case]:
    """At the main shape: the baseline, and the library's fast paths."""
    shape = settings.main_shape
    pixels = shape[0] * prod(shape[2:])
    for task in map(_task, TASKS):
        for dtype, channels_last in KINDS:
            build = Build(inputs.pixels, (shape, dtype, settings.device, None, channels_last))
            axis = label(shape) + ", channels last" * channels_last
            for contender in task.contenders:
                yield Case("layout", "layout", axis, dtype, task, contender, build, pixels, shape[1])


def _task(name: str) -> Task:
    task = pixel_task(name)
    baseline = _scaled(task.baseline)
    noise = (baseline,) if name == TASKS[0] else ()  # once is enough
    fast = (_scaled(contender) for contender in task.own if contender.backend in FAST)
    return Task(task.name, _scaled_truth(task.truth), (*noise, *fast), baseline, task.chosen)


def _scaled(contender: Contender) -> Contender:
    def build(problem: Any) -> Step:
        step = contender.build(problem)
        return lambda: SCALE * step()

    return replace(contender, build=build)


def _scaled_truth(formula: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
    return lambda problem: SCALE * formula(problem)


def bench_layout(run_case: Any, case: Case) -> None:
    run_case(case)
