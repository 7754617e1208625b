"""Every per-pixel loss at every shape and dtype, beside `F.cross_entropy`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.speed import inputs
from benchmarks.speed.case import Build, Case
from benchmarks.speed.contenders import FAST, Contender
from benchmarks.speed.settings import Settings, Shape, label
from benchmarks.speed.tasks import PIXEL_TASKS, Task


def cases(settings: Settings) -> Iterator[Case]:
    """Shape by shape, a job's dtypes together, so that they share its truth."""
    for shape in settings.pixel_shapes:
        for task in PIXEL_TASKS:
            for dtype in settings.dtypes:
                for contender in _who(task, shape, dtype, settings):
                    yield _case(shape, task, dtype, contender, settings)


def _who(task: Task, shape: Shape, dtype: str, settings: Settings) -> list[Contender]:
    """Everyone at the main shape; elsewhere fewer, to end within minutes.

    Compiling takes seconds: torch's own loss is compiled at the main shape alone. On the CPU the other shapes have the
    library's fast path alone in bfloat16.
    """
    everyone = [task.baseline, *(c for c in task.contenders if c is not task.baseline)]
    main, half_on_cpu = shape == settings.main_shape, dtype != "float32" and settings.device == "cpu"
    if not main or half_on_cpu:
        everyone = [c for c in everyone if "torch.compile" not in c.name]
    if not main and half_on_cpu:
        everyone = [c for c in everyone if c.backend in FAST]
    # The baseline against itself shows the noise; once a shape and dtype is enough.
    return everyone if task is PIXEL_TASKS[0] else [c for c in everyone if c is not task.baseline]


def _case(shape: Shape, task: Task, dtype: str, contender: Contender, settings: Settings) -> Case:
    size = label(shape)
    build = Build(inputs.pixels, (shape, dtype, settings.device))
    pixels = shape[0]
    for side in shape[2:]:
        pixels *= side
    return Case(f"pixel {size}", "pixel", size, dtype, task, contender, build, pixels, shape[1])


def bench_pixel(run_case: Any, case: Case) -> None:
    run_case(case)
