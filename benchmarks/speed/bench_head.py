"""Last layer and cross-entropy in one: torch's `linear_cross_entropy` and Liger beside a convolution and a loss."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed import formulas, inputs, peers
from benchmarks.speed.case import Build, Case
from benchmarks.speed.contenders import BACKENDS, Contender, Step, require_backend
from benchmarks.speed.inputs import IGNORE_INDEX, Head
from benchmarks.speed.settings import Settings, label
from benchmarks.speed.tasks import Task
from classbalance_losses import WeightedCrossEntropyLoss


def _logits(problem: Head) -> Tensor:
    return F.conv2d(problem.features, problem.weight[:, :, None, None])


def _eager(problem: Head) -> Step:
    return lambda: F.cross_entropy(_logits(problem).float(), problem.target, ignore_index=IGNORE_INDEX)


def _ours(backend: str) -> Contender:
    def build(problem: Head) -> Step:
        require_backend(backend, problem.features.device)
        criterion = WeightedCrossEntropyLoss(ignore_index=IGNORE_INDEX)
        return lambda: criterion(_logits(problem), problem.target)

    loss = "WeightedCrossEntropyLoss"
    return Contender(f"F.conv2d + {loss}, {backend}", build, loss=loss, backend=backend)


BASELINE = Contender("F.conv2d + F.cross_entropy", _eager, "torch")
TASK = Task(
    "1×1 convolution and cross-entropy",
    formulas.head_cross_entropy,
    (BASELINE, peers.LINEAR_CROSS_ENTROPY, peers.LIGER_LINEAR, *map(_ours, BACKENDS)),
    BASELINE,
)


def cases(settings: Settings) -> Iterator[Case]:
    """One size for the CPU, a larger one for the GPU."""
    shape = (2, 256, 512, 1024) if settings.device == "cuda" else (1, 64, 256, 512)
    shape = (1, 6, 8, 8) if settings.quick else shape
    pixels = shape[0] * prod(shape[2:])
    for contender in TASK.contenders:
        build = Build(inputs.head, (shape, 19, "float32", settings.device))
        yield Case("pieces", "head", f"{label(shape)} to 19", "float32", TASK, contender, build, pixels, 19)


def bench_head(run_case: Any, case: Case) -> None:
    run_case(case)
