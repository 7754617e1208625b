"""No time without a right answer: value and gradient of a contender against the float64 truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.inputs import Problem

# Relative errors that still count as right. A job that chooses pixels may choose a few others by rounding.
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}
CHOSEN = {"float32": 1e-2, "float16": 2e-2, "bfloat16": 1.5e-1}


class Wrong(Exception):  # noqa: N818
    """A contender whose answer is not the truth."""


@dataclass(frozen=True)
class Truth:
    """The right value, and the right gradient for each leaf in float32."""

    value: Tensor
    gradients: tuple[Tensor, ...]


@dataclass(frozen=True)
class Errors:
    """Relative errors; the gradient's is ‖g − g*‖ / ‖g*‖, the largest over the leaves."""

    value: float
    gradient: float


def truth_of(formula: Callable[[Any], Tensor], problem: Problem) -> Truth:
    """Compute a job's answer in float64."""
    wide = problem.in_float64()
    value = formula(wide)
    gradients = torch.autograd.grad(value, wide.leaves) if wide.leaves else ()
    return Truth(value.detach(), tuple(gradient.float() for gradient in gradients))


def errors_of(value: Tensor, problem: Problem, truth: Truth) -> Errors:
    """Compare a step's value, and the gradients that it left at the leaves, with the truth."""
    gradients = [
        math.inf if leaf.grad is None else relative_error(leaf.grad.float(), right)
        for leaf, right in zip(problem.leaves, truth.gradients, strict=True)
    ]
    return Errors(relative_error(value, truth.value), max(gradients, default=0.0))


def relative_error(value: Tensor, right: Tensor) -> float:
    """‖value − right‖ / ‖right‖; infinite where it is no number or no match."""
    if value.shape != right.shape:
        return math.inf
    wide = right.float() if right.dtype in (torch.bool, torch.float32) else right.double()
    error = float(torch.linalg.vector_norm(value.detach().to(wide.dtype) - wide))
    size = float(torch.linalg.vector_norm(wide))
    error = error / size if size else error
    return error if math.isfinite(error) else math.inf


def require_right(errors: Errors, dtype: str, *, chosen: bool) -> None:
    """Raise Wrong where an error is above what the dtype allows."""
    bound = (CHOSEN if chosen else TOLERANCE)[dtype]
    if max(errors.value, errors.gradient) > bound:
        raise Wrong(
            f"value off by {errors.value:.1e}, gradient by {errors.gradient:.1e}, "
            f"more than {bound:g} is wrong"
        )
