"""One logit a pixel, overlaps and what is added to them, and soft labels: a group each."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

from benchmarks.speed import inputs
from benchmarks.speed.case import Build, Case
from benchmarks.speed.contenders import FAST
from benchmarks.speed.settings import Settings, label
from benchmarks.speed.tasks import BINARY_TASKS, OVERLAP_TASKS, SOFT_TASKS


def cases(settings: Settings) -> Iterator[Case]:
    """Everyone in both dtypes; on the CPU, where the rest takes minutes, bfloat16 has the library's fast path alone."""
    groups = (
        ("binary", settings.binary_shape, inputs.binary, BINARY_TASKS),
        ("overlap", settings.main_shape, inputs.labelled, OVERLAP_TASKS),
        ("soft", settings.main_shape, inputs.soft, SOFT_TASKS),
    )
    for group, shape, builder, tasks in groups:
        pixels = shape[0] * prod(shape[2:])
        for task in tasks:
            for dtype in settings.dtypes:
                build = Build(builder, (shape, dtype, settings.device))
                for contender in task.contenders:
                    if dtype == "float32" or settings.device == "cuda" or contender.backend in FAST:
                        yield Case(
                            group, group, label(shape), dtype, task, contender, build, pixels, shape[1]
                        )


def bench_targets(run_case: Any, case: Case) -> None:
    run_case(case)
