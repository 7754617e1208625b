"""GBW's quadratic programme, alone: a solver on the host at each step, and the projection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.speed import formulas, inputs, peers
from benchmarks.speed.case import Build, Case
from benchmarks.speed.contenders import Contender, Step
from benchmarks.speed.inputs import Norms
from benchmarks.speed.settings import Settings
from benchmarks.speed.tasks import Task
from classbalance_losses.functional import solve_class_weights


def _projection(problem: Norms) -> Step:
    return lambda: solve_class_weights(problem.norms, regularization=1.0)


def _cvxpy(problem: Norms) -> Step:
    peers.require("cvxpy")
    return lambda: solve_class_weights(problem.norms, regularization=1.0, solver="cvxpy")


PROJECTION = Contender("projection", _projection)
TASK = Task(
    "class weights",
    formulas.class_weights,
    (PROJECTION, Contender("quadratic programme by cvxpy", _cvxpy, "formula")),
    PROJECTION,
)


def cases(settings: Settings) -> Iterator[Case]:
    """Few classes, and many."""
    for classes in (5, 19) if settings.quick else (19, 150, 1000):
        for contender in TASK.contenders:
            build = Build(inputs.norms, (classes, settings.device))
            yield Case(
                "pieces", "class weights", f"{classes} classes", "float32", TASK, contender, build, 0, classes
            )


def bench_class_weights(run_case: Any, case: Case) -> None:
    run_case(case)
