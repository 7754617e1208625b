"""What may not matter does not: shifts, orders, names of classes, strides, shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

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
    in_every_reduction,
    places,
    row,
    shuffled,
)
from classbalance_losses.testing.subject import Subject
from classbalance_losses.testing.violation import ViolationError


def shift(subject: Subject, problem: Problem) -> None:
    """A softmax does not see a number added to all of a pixel's logits."""
    amount = places(problem.target.numel()).reshape(problem.target.shape).remainder(5) - 2
    there = replace(problem, input=problem.input + 8 * amount.unsqueeze(1))
    expect_same(evaluate(subject, there), evaluate(subject, problem), "with shifted logits the same")


def pixels(subject: Subject, problem: Problem) -> None:
    """The order of pixels and of images does not matter: each term and gradient moves with its pixel."""
    images, count = len(problem.target), problem.target[0].numel()
    generator = torch.Generator().manual_seed(count)
    backwards = places(images).flip(0), places(count).flip(0)  # turns every tie round
    anyhow = shuffled(images, generator), shuffled(count, generator)
    expected = evaluate(subject, problem)
    for order in (backwards, anyhow):
        _expect_moved(subject, problem, expected, order)


def _expect_moved(
    subject: Subject, problem: Problem, expected: Outcome, order: tuple[Tensor, Tensor]
) -> None:
    def moved(x: Tensor) -> Tensor:
        lead = x.ndim - (problem.target.ndim - 1)  # axes before the spatial ones
        images, pixels = order
        return x[images].flatten(lead)[..., pixels].reshape(x.shape) if x.ndim > lead else x[images]

    there = replace(problem, input=moved(problem.input), target=moved(problem.target))
    came = evaluate(subject, there)
    if expected.value.shape in (problem.target.shape, problem.input.shape):
        expected = replace(expected, value=moved(expected.value))
    else:  # a number, or numbers whose places are the loss's own
        came = replace(came, value=came.value.sum())
        expected = replace(expected, value=expected.value.sum())
    said = "with its pixels in another order the same"
    expect_same(came, replace(expected, gradient=moved(expected.gradient)), said)


def _ties(subject: Subject) -> Iterator[Problem]:
    """Pixels of every loss, some of them equal: order shows in how ties are broken."""
    yield from both(subject, subject.reductions)
    for count in (2, 4, 10):
        for kind in subject.reductions:
            drawn = draw(subject, row(subject, count), seed=count, reduction=kind)
            half = places(count) // 2
            axis = 2 if drawn.input.ndim > 2 else 0
            yield replace(
                drawn,
                input=drawn.input.index_select(axis, half),
                target=drawn.target.index_select(max(axis - 1, 0), half),
            )


def classes(subject: Subject, problem: Problem) -> None:
    """The numbers that the classes have are names."""
    order = shuffled(subject.num_classes, torch.Generator().manual_seed(subject.num_classes))
    order = order.flip(0) if torch.equal(order, order.sort().values) else order
    name = torch.argsort(order)
    target = torch.where(
        problem.ignored, problem.target, name[problem.target.clamp(0, subject.num_classes - 1)]
    )
    there = replace(problem, input=problem.input[:, order], target=target)
    expected = evaluate(subject, problem)
    of_classes = expected.value.shape == problem.input.shape  # some losses' "none" has the class axis
    value = expected.value[:, order] if of_classes else expected.value
    renamed = Outcome(value, expected.gradient[:, order])
    expect_same(evaluate(subject, there), renamed, f"with its classes in the order {order.tolist()} the same")


def _class_last(x: Tensor) -> Tensor:
    axis = 1 if x.ndim > 2 else 0
    return x.movedim(axis, -1).contiguous().movedim(-1, axis)


def _sliced(x: Tensor) -> Tensor:
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), 1, dtype=x.dtype, device=x.device)
    wide[..., 1::2] = x
    return wide[..., 1::2]


_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "the classes innermost": _class_last,
    "every second number of a larger tensor": _sliced,
}


def layout(subject: Subject, problem: Problem) -> None:
    """Strides are not numbers."""
    expected = evaluate(subject, problem)
    for name, made in _LAYOUTS.items():
        there = replace(problem, input=made(problem.input), target=made(problem.target))
        expect_same(evaluate(subject, there), expected, f"with {name} in memory the same")


def shapes(subject: Subject, problem: Problem) -> None:
    """An image or a volume is its pixels in a row."""
    axes = min(d for d in subject.dims if d)
    tail = [1] * (axes - 1)
    flat_input, flat_target = problem.input.flatten(2), problem.target.flatten(1)
    there = replace(
        problem,
        input=flat_input.reshape(*flat_input.shape, *tail),
        target=flat_target.reshape(*flat_target.shape, *tail),
    )
    came, expected = evaluate(subject, problem), evaluate(subject, there)
    many = came.value.ndim and came.value.numel() == expected.value.numel()
    value = expected.value.reshape(came.value.shape) if many else expected.value
    said = "of the pixels in a row the same"
    expect_same(came, Outcome(value, expected.gradient.reshape(problem.input.shape)), said)


def _two_ranks(subject: Subject) -> str:
    return "" if sum(d > 0 for d in subject.dims) > 1 else "the loss takes one number of spatial axes"


def _images(subject: Subject) -> Iterator[Problem]:
    least = min(d for d in subject.dims if d)
    for problem in both(subject, subject.reductions):
        if problem.target.ndim - 1 > least:
            yield problem


def repeatable(subject: Subject, problem: Problem) -> None:
    """The same call gives the same again, and leaves its arguments alone."""
    before: dict[str, Any] = {"input": problem.input.clone(), "target": problem.target.clone()}
    first = evaluate(subject, problem)
    for name, kept in before.items():
        if not torch.equal(getattr(problem, name), kept):
            raise ViolationError(f"the {name} left as it was", "another in its place")
    expect_same(evaluate(subject, problem), first, "in a second call the same")


LAWS = (
    Law(
        "repeatable",
        "The same call gives the same, and leaves its arguments alone",
        repeatable,
        partial(in_every_reduction, problems=both),
    ),
    Law("shift", "A number added to all logits of a pixel changes nothing", shift, both),
    Law("pixels", "The order of pixels and images does not matter", pixels, _ties),
    Law(
        "classes",
        "The order of the classes does not matter",
        classes,
        partial(in_every_reduction, problems=both),
    ),
    Law("layout", "Strides of logits and target do not matter", layout, both),
    Law("shapes", "An image or a volume gives what its pixels in a row give", shapes, _images, _two_ranks),
)
