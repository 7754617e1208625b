"""Choosing the hardest fifth of the pixels, alone: a sort, top-k, k-th value, ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed import formulas, inputs
from benchmarks.speed.case import Build, Case
from benchmarks.speed.contenders import Contender, Skipped, Step
from benchmarks.speed.inputs import HARD, IGNORE_INDEX, Losses
from benchmarks.speed.settings import Settings
from benchmarks.speed.tasks import Task

TASK_NAME = "hardest fifth"


def _by_threshold(find: Callable[[Tensor, int], Tensor]) -> Callable[[Losses], Step]:
    """Keep what reaches a threshold among the kept losses; dropped ones count as −1."""

    def build(problem: Losses) -> Step:
        def step() -> Tensor:
            loss = torch.where(problem.keep, problem.loss, -1)
            return loss >= find(loss.flatten(), problem.kept)

        return step

    return build


def _ours(problem: Losses) -> Step:
    """What DyCELoss mines with; it is not public, and the only such import here."""
    try:
        from classbalance_losses._dispatch import backend_for_maps  # noqa: PLC0415
        from classbalance_losses.kernels.call import Labels  # noqa: PLC0415
        from classbalance_losses.kernels.factors import members  # noqa: PLC0415
        from classbalance_losses.ops.mining import hardest  # noqa: PLC0415
    except ImportError as error:
        raise Skipped(f"mining has moved: {error}") from error
    labels = Labels(torch.where(problem.keep, 0, IGNORE_INDEX), 1, IGNORE_INDEX)

    def step() -> Tensor:
        backend = backend_for_maps(labels, problem.loss)
        return members(hardest(problem.loss, labels, fraction=HARD, backend=backend), problem.keep)[0]

    return step


SORT = Contender("sort", _by_threshold(lambda loss, k: loss.sort(descending=True).values[k - 1]), "torch")
TASK = Task(
    TASK_NAME,
    formulas.hard_mask,
    (
        SORT,
        Contender("topk", _by_threshold(lambda loss, k: loss.topk(k, sorted=False).values.min()), "torch"),
        Contender(
            "kthvalue", _by_threshold(lambda loss, k: loss.kthvalue(len(loss) - k + 1).values), "torch"
        ),
        Contender("histogram of the bits", _ours),
    ),
    SORT,
)


def cases(settings: Settings) -> Iterator[Case]:
    """One crop, two large images."""
    for count in (300, 700) if settings.quick else (512 * 512, 2 * 1024 * 2048):
        for contender in TASK.contenders:
            build = Build(inputs.losses, (count, settings.device))
            yield Case("pieces", "mining", f"{count} pixels", "float32", TASK, contender, build, count)


def bench_mining(run_case: Any, case: Case) -> None:
    run_case(case)
