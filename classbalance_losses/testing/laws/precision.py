"""Extreme logits, and every dtype of logits and labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from classbalance_losses.testing.laws.law import Law
from classbalance_losses.testing.laws.values import expect_same
from classbalance_losses.testing.problem import (
    Outcome,
    Problem,
    both,
    draw,
    evaluate,
    places,
    plain,
    row,
    with_ignored,
)
from classbalance_losses.testing.subject import Subject
from classbalance_losses.testing.violation import ViolationError, expect_close, expect_finite

_VARIED = 4  # classes whose logits take every pattern; those of the others are 0
_MARGINS = (30.0, 100.0, 1e4)
_GRADIENT = 0.05  # relative error of the gradients of half logits
_HALVES = (torch.float16, torch.bfloat16)
_LABELS = (torch.uint8, torch.int16, torch.int32)


def _extremes(subject: Subject) -> Iterator[Problem]:
    """Every pattern of a margin, its negative and 0 over the classes, with every label among those varied."""
    varied = min(_VARIED, subject.num_classes)
    for margin, dtype in product(_MARGINS, (torch.float32, torch.float64)):
        levels = torch.tensor([0.0, margin, -margin], dtype=torch.float32, device="cpu")
        rows = torch.cartesian_prod(*[levels] * varied)
        logits = torch.zeros(len(rows) * varied, subject.num_classes, dtype=torch.float32, device="cpu")
        logits[:, :varied] = rows.repeat_interleave(varied, 0)
        size = row(subject, len(logits))
        shaped = logits if len(size) == 1 else logits.T.reshape(1, subject.num_classes, *size[1:])
        target = places(varied).repeat(len(rows)).reshape(size)
        yield Problem(shaped.to(dtype), target, reduction=subject.mean)


def saturation(subject: Subject, problem: Problem) -> None:
    """No logit is too large."""
    came = evaluate(subject, problem)
    expect_finite("a loss", came.value)
    expect_finite("a gradient", came.gradient)


def _growing(subject: Subject) -> Iterator[Problem]:
    """Up to so many pixels that a sum of their losses passes 65504, the largest float16."""
    for side, dtype, kind in product((1, 2, 8, 32, 128, 256), _HALVES, (subject.mean,)):
        axes = next((d for d in (2, 1, 3, 0) if d in subject.dims), 0)
        size = {0: (side**2,), 1: (1, side**2), 2: (1, side, side), 3: (1, side, side, 1)}[axes]
        yield draw(subject, size, seed=side, dtype=dtype, reduction=kind, scale=4.0)


def half(subject: Subject, problem: Problem) -> None:
    """The loss of the same numbers in float64, to twice the dtype's rounding; the gradient to a few per cent.

    The gradients are compared as a whole, for a loss that selects pixels may take another at a near tie.
    """
    came = evaluate(subject, problem)
    exact = evaluate(subject, replace(problem, input=problem.input.double()))
    eps = torch.finfo(problem.input.dtype).eps
    name = str(problem.input.dtype)[6:]
    expect_close(
        f"in {name} the float64 loss of the same logits,", came.value, exact.value, (2 * eps, 2 * eps)
    )
    away, size = (came.gradient.double() - exact.gradient).norm(), exact.gradient.norm()
    if not away <= _GRADIENT * size:
        raise ViolationError(
            f"in {name} the float64 gradient, of norm {float(size):.3g}, to {_GRADIENT:.0%}",
            f"one that is {float(away):.3g} from it",
        )


def dtypes(subject: Subject, problem: Problem) -> None:
    """float64 is kept, and float32 is it to float32's rounding."""
    exact = evaluate(subject, problem)
    if exact.value.dtype != torch.float64:
        raise ViolationError("of float64 logits a float64 loss", str(exact.value.dtype)[6:])
    came = evaluate(subject, replace(problem, input=problem.input.float()))
    if came.value.dtype not in (torch.float32, torch.float64):
        raise ViolationError("of float32 logits a float32 loss", str(came.value.dtype)[6:])
    expect_same(Outcome(came.value.float(), came.gradient), exact, "in float32 the float64")


def labels(subject: Subject, problem: Problem) -> None:
    """The integer type of the target does not matter."""
    expected = evaluate(subject, problem)
    for dtype in _LABELS:
        if _fits(problem.target, dtype):
            came = evaluate(subject, replace(problem, target=problem.target.to(dtype)))
            expect_same(came, expected, f"with a target of {str(dtype)[6:]} the same")


def _fits(target: Tensor, dtype: torch.dtype) -> bool:
    return torch.equal(target.to(dtype).long(), target)


def _byte_labels(subject: Subject) -> Iterator[Problem]:
    """Without ignored pixels, and with 255 for them, which fits every type."""
    for problem in plain(subject):
        yield problem
        if subject.ignores and problem.target.numel() > 1:
            yield with_ignored(subject, problem, 255)


LAWS = (
    Law(
        "saturation",
        "Value and gradient are finite for any finite logits",
        saturation,
        _extremes,
        shrinks=True,
    ),
    Law(
        "half",
        "Of float16 and bfloat16 logits it is the float64 loss of the same numbers, for any number of pixels",
        half,
        _growing,
    ),
    Law("dtypes", "float64 stays float64, and float32 agrees with it", dtypes, both),
    Law("labels", "The target may be of any integer type: uint8, int16, int32, int64", labels, _byte_labels),
)
