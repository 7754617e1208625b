"""One case: a contender on a problem, checked, measured beside the baseline, and recorded."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from benchmarks.speed.contenders import Contender, Skipped
from benchmarks.speed.correctness import Truth, Wrong, errors_of, require_right, truth_of
from benchmarks.speed.inputs import Problem
from benchmarks.speed.measure import Runner, memory_of
from benchmarks.speed.results import Entry
from benchmarks.speed.settings import Settings
from benchmarks.speed.tasks import Task

_SHORT = 0.02  # seconds of a round below which each step is rehearsed


@dataclass(frozen=True)
class Build:
    """How to make a problem; equal builds are made once."""

    builder: Callable[..., Problem]
    arguments: tuple[Any, ...]

    def __call__(self) -> Problem:
        """Return the problem, the last one again if it is the same."""
        return _built(self)


@dataclass(frozen=True)
class Case:
    """A contender at one job, one size and one dtype. Cases of a group run in one process."""

    group: str
    family: str
    axis: str  # the size, in words
    dtype: str
    task: Task
    contender: Contender
    build: Build
    pixels: int = 0
    classes: int = 0
    rounds: int = 0  # of the timing; 0: as many as fit

    def __str__(self) -> str:
        return f"{self.axis} | {self.dtype} | {self.task.name} | {self.contender.name}"


def measure(case: Case, settings: Settings, pedantic: Callable[..., Any]) -> Entry:
    """Check the contender, then time it and the baseline by turns; ``pedantic`` is pytest-benchmark's.

    A contender that is skipped, wrong or broken gets an entry that says so and has no time.
    """
    entry = Entry(
        group=case.group,
        family=case.family,
        axis=case.axis,
        dtype=case.dtype,
        task=case.task.name,
        contender=case.contender.name,
        origin=case.contender.origin,
        backend=case.contender.backend,
        baseline=case.task.baseline.name,
        pixels=case.pixels,
        classes=case.classes,
    )
    try:
        _measure(case, settings, pedantic, entry)
    except Skipped as reason:
        entry.status, entry.reason = "skipped", str(reason)
    except Wrong as reason:
        entry.status, entry.reason = "wrong", str(reason)
    except torch.OutOfMemoryError:
        entry.status, entry.reason = "failed", "out of memory"
    except Exception as error:  # a peer may break in any way; the others' times are still wanted
        entry.status, entry.reason = "failed", f"{type(error).__name__}: {_first_line(error)}"
    return entry


def _measure(case: Case, settings: Settings, pedantic: Callable[..., Any], entry: Entry) -> None:
    problem = case.build()
    runner = Runner(case.contender, problem, case.contender.build(problem))
    baseline = Runner(case.task.baseline, problem, case.task.baseline.build(problem))
    entry.least_bytes, entry.leaf_bytes = problem.least_bytes, problem.leaf_bytes

    truth = _truth(case.task, case.build, _same_values(case.build))
    value = runner.run()
    errors = errors_of(value, problem, truth)
    entry.value_error, entry.gradient_error = errors.value, errors.gradient
    require_right(errors, case.dtype, chosen=case.task.chosen)

    started = time.perf_counter()
    own, other = memory_of(runner, settings.device), memory_of(baseline, settings.device)
    once = time.perf_counter() - started  # both are warm after this, too
    entry.kept, entry.peak = own.kept, own.peak
    entry.baseline_kept, entry.baseline_peak = other.kept, other.peak
    _time_by_turns(runner, baseline, settings, once, case.rounds, pedantic, entry)
    runner.clear()


def _time_by_turns(
    runner: Runner,
    baseline: Runner,
    settings: Settings,
    once: float,
    rounds: int,
    pedantic: Callable[..., Any],
    entry: Entry,
) -> None:
    """Baseline, contender, baseline, contender ...: what disturbs one disturbs the other."""
    device, short = settings.device, once < _SHORT

    def before() -> None:
        gc.collect(0)
        forward, total = baseline.timed(device, rehearse=short)
        entry.baseline_forward.append(forward)
        entry.baseline_total.append(total)
        baseline.clear()

    def timed() -> None:
        forward, total = runner.timed(device, rehearse=short)
        entry.forward.append(forward)
        entry.total.append(total)

    for _ in range(settings.warm_up):
        before()
        timed()
    for times in (entry.forward, entry.total, entry.baseline_forward, entry.baseline_total):
        times.clear()
    pedantic(timed, setup=before, rounds=rounds or settings.rounds(once), iterations=1)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def _same_values(build: Build) -> tuple[Any, ...]:
    """The build's arguments without the dtype: every dtype holds the same values."""
    return tuple(argument for argument in build.arguments if argument not in ("float32", "bfloat16"))


@lru_cache(maxsize=2)  # a shape in both dtypes
def _built(build: Build) -> Problem:
    return build.builder(*build.arguments)


class _LastTruth:
    """The last truth, which the contenders of a job share, in every dtype."""

    key: Any = None
    truth: Truth | None = None


def _truth(task: Task, build: Build, values: tuple[Any, ...]) -> Truth:
    key = (task.name, build.builder, values)
    if _LastTruth.key != key or _LastTruth.truth is None:
        _LastTruth.truth = None  # free it before the next one is made
        _LastTruth.truth, _LastTruth.key = truth_of(task.truth, build()), key
    return _LastTruth.truth
