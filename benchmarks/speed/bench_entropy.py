"""The entropy of predictions without labels, beside its equation in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

from benchmarks.speed import formulas, inputs
from benchmarks.speed.case import Build, Case
from benchmarks.speed.contenders import Contender, Step
from benchmarks.speed.inputs import Pixels
from benchmarks.speed.settings import Settings, label
from benchmarks.speed.tasks import Task
from classbalance_losses import EntropyLoss


def _ours(problem: Pixels) -> Step:
    criterion = EntropyLoss()
    return lambda: criterion(problem.input)


def _formula(problem: Pixels) -> Step:
    return lambda: formulas.entropy(problem)


BASELINE = Contender("formula, plain PyTorch", _formula, "formula")
TASK = Task(
    "EntropyLoss", formulas.entropy, (BASELINE, Contender("EntropyLoss", _ours, loss="EntropyLoss")), BASELINE
)


def cases(settings: Settings) -> Iterator[Case]:
    """The main size."""
    shape = settings.main_shape
    for contender in TASK.contenders:
        build = Build(inputs.pixels, (shape, "float32", settings.device))
        pixels = shape[0] * prod(shape[2:])
        yield Case("pieces", "entropy", label(shape), "float32", TASK, contender, build, pixels, shape[1])


def bench_entropy(run_case: Any, case: Case) -> None:
    run_case(case)
