"""An ignored pixel is as if it were not there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from classbalance_losses.testing.laws.law import Law, needs, needs_ignoring
from classbalance_losses.testing.laws.values import expect_same
from classbalance_losses.testing.problem import (
    Problem,
    draw,
    evaluate,
    holed,
    in_every_reduction,
    plain,
    row,
    sizes_of,
    with_ignored,
)
from classbalance_losses.testing.subject import Subject
from classbalance_losses.testing.violation import expect_close


def expect_inert(subject: Subject, problem: Problem, changed: Tensor, said: str) -> None:
    """The loss is the same with those logits, and has no gradient where they are ignored."""
    came, expected = evaluate(subject, replace(problem, input=changed)), evaluate(subject, problem)
    expect_same(came, expected, f"with {said} at the ignored pixels the same")
    hole = problem.ignored
    mine = came.gradient.movedim(1, -1)[hole]
    expect_close("at ignored pixels a gradient of", mine, torch.zeros_like(mine), came.value.dtype)
    if problem.reduction == "none" and came.value.shape == hole.shape:
        terms = came.value[hole]
        expect_close("at ignored pixels a loss of", terms, torch.zeros_like(terms), came.value.dtype)


def ignored(subject: Subject, problem: Problem) -> None:
    """Finite logits there do not matter."""
    hole = problem.ignored.unsqueeze(1)
    expect_inert(subject, problem, torch.where(hole, 1 - 3 * problem.input, problem.input), "other logits")


def ignored_nan(subject: Subject, problem: Problem) -> None:
    """Nor do any others."""
    hole = problem.ignored.unsqueeze(1)
    for poison in (math.nan, math.inf, -math.inf):
        expect_inert(subject, problem, problem.input.masked_fill(hole, poison), f"logits {poison}")


def dropped(subject: Subject, problem: Problem) -> None:
    """It is the loss of the other pixels alone: ignored ones do not count in a mean."""
    keep = ~problem.ignored.flatten()
    pixels = int(keep.sum())
    logits = problem.input.movedim(1, -1).reshape(-1, subject.num_classes)[keep]
    size = row(subject, pixels)
    if len(size) > 1:
        logits = logits.T.reshape(1, subject.num_classes, *size[1:])
    without = replace(problem, input=logits, target=problem.target.flatten()[keep].reshape(size))
    came, expected = evaluate(subject, problem), evaluate(subject, without)
    expect_close("without the ignored pixels the same loss,", came.value, expected.value, came.value.dtype)


def ignore_index(subject: Subject, problem: Problem) -> None:
    """Which label is ignored is no matter where no pixel has it."""
    plainly = evaluate(subject, problem)
    for label in (-1, max(255, subject.num_classes)):
        came = evaluate(subject, replace(problem, ignore_index=label))
        expect_same(came, plainly, f"with ignore_index={label}, which no pixel has, the same")


def nothing(subject: Subject, problem: Problem) -> None:
    """Nothing to learn is 0, and in the graph."""
    came = evaluate(subject, problem)
    expect_close("a loss of", came.value, torch.zeros_like(came.value), came.value.dtype)
    expect_close("a gradient of", came.gradient, torch.zeros_like(problem.input), came.value.dtype)


def _rows(subject: Subject) -> Iterator[Problem]:
    for pixels in (2, 3, 5, 12):
        for kind in subject.scalars:
            yield with_ignored(subject, draw(subject, row(subject, pixels), seed=pixels, reduction=kind))


def _all_ignored(subject: Subject) -> Iterator[Problem]:
    label = -100 if subject.ignore_index is None else subject.ignore_index
    for problem in plain(subject, subject.reductions):
        yield replace(problem, target=torch.full_like(problem.target, label), ignore_index=label)


def _no_pixels(subject: Subject) -> Iterator[Problem]:
    sizes = [(0, *size[1:]) for size in sizes_of(subject.dims) if len(size) == 1 or size[0] == 2]
    for size in dict.fromkeys(sizes):
        for kind in subject.reductions:
            yield draw(subject, size, reduction=kind)


LAWS = (
    Law(
        "ignored",
        "Logits of ignored pixels do not matter, and get no gradient",
        ignored,
        partial(in_every_reduction, problems=holed),
        needs_ignoring,
    ),
    Law(
        "ignored_nan",
        "They may be NaN or infinite",
        ignored_nan,
        partial(in_every_reduction, problems=holed),
        needs_ignoring,
    ),
    Law(
        "dropped",
        "Ignoring pixels is never having had them: they do not count",
        dropped,
        _rows,
        needs_ignoring,
    ),
    Law(
        "ignore_index",
        "An ignore_index that no pixel has changes nothing",
        ignore_index,
        partial(in_every_reduction, problems=plain),
        needs("ignore_index"),
    ),
    Law(
        "all_ignored", "With every pixel ignored it is 0, with a graph", nothing, _all_ignored, needs_ignoring
    ),
    Law("no_pixels", "Of no images it is 0, with a graph", nothing, _no_pixels),
)
