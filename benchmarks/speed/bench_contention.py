"""The per-pixel losses beside two busy processes, such as data loaders, which take the cores from threads that wait."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import pytest

from benchmarks.speed import inputs
from benchmarks.speed.case import Build, Case
from benchmarks.speed.contenders import BACKENDS
from benchmarks.speed.settings import Settings, label
from benchmarks.speed.tasks import pixel_task

TASKS = ("cross-entropy", "focal", "DyCE", "GBW")
BUSY = 2
ROUNDS = 20
# Of each group, whose process OpenMP reads its settings in. By default a thread that waits spins for a while.
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "contention": {},
    "contention, passive": {"OMP_WAIT_POLICY": "passive"},
}
# It ends with the process that began it, however that ends.
_BUSY_LOOP = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    sum(range(1_000_000))"


def cases(settings: Settings) -> Iterator[Case]:
    """The loops, and the baseline against itself, which shows the noise: in float32, on the CPU alone."""
    if settings.device != "cpu":
        return
    for group in ENVIRONMENTS:
        for shape in settings.contention_shapes:
            for name in TASKS[:1] if settings.quick else TASKS:
                task = pixel_task(name)
                loops = [c for c in task.own if c.backend == BACKENDS[1]]
                for contender in [task.baseline, *loops] if name == TASKS[0] else loops:
                    build = Build(inputs.pixels, (shape, "float32", settings.device))
                    pixels = shape[0] * prod(shape[2:])
                    rounds = settings.min_rounds if settings.quick else ROUNDS
                    axis = label(shape)
                    yield Case(
                        group, group, axis, "float32", task, contender, build, pixels, shape[1], rounds
                    )


@contextmanager
def busy(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Have so many processes compute meanwhile."""
    command = [sys.executable, "-c", _BUSY_LOOP, str(os.getpid())]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def _busy() -> Iterator[None]:
    with busy(BUSY):
        yield


@pytest.mark.usefixtures("_busy")
def bench_contention(run_case: Any, case: Case) -> None:
    run_case(case)
