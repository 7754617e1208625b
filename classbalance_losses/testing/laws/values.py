"""What a loss's numbers are: cross-entropy's, their reductions, and their weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from classbalance_losses.testing.laws.law import Law, needs
from classbalance_losses.testing.problem import (
    Outcome,
    Problem,
    both,
    evaluate,
    in_every_reduction,
    places,
    plain,
)
from classbalance_losses.testing.subject import Subject
from classbalance_losses.testing.violation import ViolationError, expect_close


def reference(problem: Problem) -> Outcome:
    """PyTorch's cross-entropy."""
    logits = problem.input.detach().requires_grad_()
    value = F.cross_entropy(logits, problem.target, **{"reduction": "mean", **problem.options})
    return Outcome(value.detach(), torch.autograd.grad(value.sum(), logits)[0])


def expect_same(came: Outcome, expected: Outcome, of: str) -> None:
    """Value and gradient agree to the rounding of the loss's dtype."""
    expect_close(f"{of} value", came.value, expected.value, came.value.dtype)
    expect_close(f"{of} gradient", came.gradient, expected.gradient, came.value.dtype)


def neutral_setting(subject: Subject) -> str:
    """For losses that are said to be cross-entropy."""
    return "" if subject.neutral else "the caller does not say that these settings are neutral"


def _with_a_class_ignored(subject: Subject) -> Iterator[Problem]:
    yield from both(subject, subject.reductions)
    if "ignore_index" in subject.options:
        for problem in plain(subject, subject.reductions):
            if (problem.target != 1).any():  # else PyTorch's mean is that of nothing
                yield replace(problem, ignore_index=1)


def cross_entropy(subject: Subject, problem: Problem) -> None:
    """Value and gradient are torch.nn.functional.cross_entropy's."""
    expect_same(evaluate(subject, problem), reference(problem), "F.cross_entropy's")


def reduction(subject: Subject, problem: Problem) -> None:
    """The three belong together."""
    pixel, total, mean = (
        evaluate(subject, replace(problem, reduction=kind)) for kind in ("none", "sum", "mean")
    )
    if pixel.value.shape != problem.target.shape:
        raise ViolationError(
            f'reduction="none" of the target\'s shape {tuple(problem.target.shape)}',
            f"shape {tuple(pixel.value.shape)}",
        )
    dtype = pixel.value.dtype
    for name, scalar in (('"sum"', total), ('"mean"', mean)):
        if scalar.value.shape != ():
            raise ViolationError(f"reduction={name} a number", f"shape {tuple(scalar.value.shape)}")
    expect_close('reduction="sum" the sum of "none":', total.value, pixel.value.sum(), dtype)
    expect_close('the gradient of "sum" that of the sum of "none":', total.gradient, pixel.gradient, dtype)
    ratio = mean.value / total.value if total.value else torch.zeros_like(total.value)
    expect_close(
        'the gradient of "mean" that of "sum", scaled as their values are:',
        mean.gradient,
        total.gradient * ratio,
        dtype,
    )


def class_weights(num_classes: int) -> Tensor:
    """Unequal, and exact in every floating dtype."""
    weights = [0.25 + 0.5 * ((3 * c) % 7) for c in range(num_classes)]
    return torch.tensor(weights, dtype=torch.float64, device="cpu")


def class_weight(subject: Subject, problem: Problem) -> None:
    """Ones are no weights; and of a neutral loss, they are F.cross_entropy's."""
    ones = torch.ones(subject.num_classes, dtype=problem.input.dtype, device="cpu")
    weighted = evaluate(subject, replace(problem, weight=ones))
    expect_same(weighted, evaluate(subject, problem), "with class weights of 1 the same")
    there = replace(problem, weight=class_weights(subject.num_classes).to(problem.input.dtype))
    came = evaluate(subject, there)
    if subject.neutral:
        expect_same(came, reference(there), f"with weight {there.weight.tolist()} F.cross_entropy's")  # type: ignore[union-attr]


def pixel_weight(subject: Subject, problem: Problem) -> None:
    """Ones are no weights, a pixel of weight 0 has no say; and of a neutral loss, a weight is a factor."""
    shape, dtype = problem.target.shape, problem.input.dtype
    ones = evaluate(subject, replace(problem, pixel_weight=torch.ones(shape, dtype=dtype, device="cpu")))
    expect_same(ones, evaluate(subject, problem), "with pixel weights of 1 the same")
    factor = places(shape.numel()).reshape(shape).remainder(4).to(dtype) / 2  # the first is 0
    came = evaluate(subject, replace(problem, pixel_weight=factor))
    mine = came.gradient.movedim(1, -1)[factor == 0]
    expect_close("at pixels of weight 0 a gradient of", mine, torch.zeros_like(mine), came.value.dtype)
    if subject.neutral and problem.reduction in ("none", "sum"):
        terms = factor * evaluate(subject, replace(problem, reduction="none")).value
        value = terms if problem.reduction == "none" else terms.sum()
        expect_close("each pixel's term times its weight:", came.value, value, came.value.dtype)


LAWS = (
    Law(
        "cross_entropy",
        "It equals F.cross_entropy, with any reduction, rank and ignored label",
        cross_entropy,
        _with_a_class_ignored,
        neutral_setting,
    ),
    Law(
        "reduction",
        '"none" has the target\'s shape, "sum" is its sum, "mean" that over a constant',
        reduction,
        partial(both, reductions=(None,)),
        needs("reduction"),
    ),
    Law(
        "class_weight",
        "Class weights of 1 change nothing, with ignored pixels too; where neutral, weights are F.cross_entropy's",
        class_weight,
        partial(in_every_reduction, problems=both),
        needs("weight"),
    ),
    Law(
        "pixel_weight",
        "Pixel weights of 1 change nothing, 0 leaves a pixel out; where neutral, a weight is a factor",
        pixel_weight,
        partial(in_every_reduction, problems=both),
        needs("pixel_weight"),
    ),
)
