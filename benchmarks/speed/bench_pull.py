"""The pull loss on vectors, and the whole step of `PullLoss`, beside a loop over the classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import classbalance_losses
from benchmarks.speed import formulas, inputs
from benchmarks.speed.case import Build, Case
from benchmarks.speed.contenders import BACKENDS, Contender, Step, require_backend
from benchmarks.speed.inputs import IGNORE_INDEX, Domains, Vectors
from benchmarks.speed.settings import Settings, label
from benchmarks.speed.tasks import Task
from classbalance_losses import PullLoss, functional

LOOPS = {"infonce": formulas.pull_infonce, "mse": formulas.pull_mse}


def _loop(objective: str) -> Contender:
    def build(problem: Vectors) -> Step:
        return lambda: LOOPS[objective](problem)

    return Contender("formula, class by class", build, "formula")


def _ours(objective: str, backend: str) -> Contender:
    def build(problem: Vectors) -> Step:
        require_backend(backend, problem.queries.device)
        return lambda: functional.pull_loss(
            problem.queries,
            problem.labels,
            problem.prototypes,
            problem.negatives if objective == "infonce" else None,
            problem.class_weight,
            objective=objective,
            temperature=formulas.TEMPERATURE,
            ignore_index=IGNORE_INDEX,
        )

    return Contender(f"pull_loss, {backend}", build, loss="PullLoss", backend=backend)


def _task(objective: str) -> Task:
    loop = _loop(objective)
    contenders = (loop, *(_ours(objective, backend) for backend in BACKENDS))
    return Task(f"pull loss, {objective}", LOOPS[objective], contenders, loop)


def _module(problem: Domains) -> Tensor:
    """The draws depend on the seed alone, so every backend and dtype gets the same queries and negatives."""
    classes, device = problem.target_probabilities.shape[1], problem.student.device
    criterion = PullLoss(num_classes=classes, ignore_index=IGNORE_INDEX).to(device)
    output: Tensor = criterion(
        problem.student,
        problem.student_labels,
        source_features=problem.source,
        source_labels=problem.source_labels,
        target_features=problem.target,
        target_probabilities=problem.target_probabilities,
        generator=torch.Generator(device).manual_seed(0),
    )
    return output


def _reference(problem: Domains) -> Tensor:
    """No formula: the module on the reference backend, in float64."""
    with classbalance_losses.use_backend("reference"):
        return _module(problem)


def _whole(backend: str) -> Contender:
    def build(problem: Domains) -> Step:
        require_backend(backend, problem.student.device)
        return lambda: _module(problem)

    return Contender(f"PullLoss, {backend}", build, loss="PullLoss", backend=backend)


MODULE_CONTENDERS = tuple(map(_whole, BACKENDS))
MODULE = Task("PullLoss, whole step", _reference, MODULE_CONTENDERS, MODULE_CONTENDERS[0])
VECTORS = tuple(map(_task, LOOPS))


def cases(settings: Settings) -> Iterator[Case]:
    """256 queries a class and 512 negatives; features of a street scene at an eighth of its size."""
    queries, width, classes, negatives = (40, 8, 5, 6) if settings.quick else (4864, 256, 19, 512)
    shape = (1, 8, 16, 20) if settings.quick else (2, 256, 64, 128)
    for task in VECTORS:
        build = Build(inputs.vectors, (queries, width, classes, negatives, "float32", settings.device))
        axis = f"{queries} queries of {width}, {negatives} negatives"
        for contender in task.contenders:
            yield Case("pieces", "pull", axis, "float32", task, contender, build, queries, classes)
    build = Build(inputs.domains, (shape, classes, "float32", settings.device))
    for contender in MODULE.contenders:
        yield Case("pieces", "pull", f"{label(shape)}", "float32", MODULE, contender, build, 0, classes)


def bench_pull(run_case: Any, case: Case) -> None:
    run_case(case)
