"""Finite differences, double backward, and torch.func."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from classbalance_losses.testing.laws.law import Law
from classbalance_losses.testing.problem import Problem, draw, evaluate, forward, sizes_of, with_ignored
from classbalance_losses.testing.subject import Subject
from classbalance_losses.testing.violation import blamed_on_the_loss, expect_close

_PIXELS = 6  # finite differences call the loss twice a logit


def _smooth(subject: Subject) -> Iterator[Problem]:
    """Logits off the grid: where two losses tie, a selection has no derivative."""
    sizes = [size for size in sizes_of(subject.dims) if torch.Size(size).numel() <= _PIXELS]
    for size in sizes:
        for kind in subject.scalars[-1:]:
            problem = draw(subject, size, seed=len(size), grid=False, scale=1.0, reduction=kind)
            yield problem
            if subject.ignores and problem.target.numel() > 1:
                yield with_ignored(subject, problem)


def _of_input(subject: Subject, problem: Problem) -> Callable[[Tensor], Tensor]:
    return lambda logits: forward(subject, replace(problem, input=logits))


def derivative(subject: Subject, problem: Problem) -> None:
    """The gradient is the derivative."""
    logits = problem.input.clone().requires_grad_()
    with blamed_on_the_loss("the gradient that finite differences give"):
        gradcheck(_of_input(subject, problem), logits)


def second_derivative(subject: Subject, problem: Problem) -> None:
    """And its gradient is the second."""
    logits = problem.input.clone().requires_grad_()
    with blamed_on_the_loss("the second derivative that finite differences give"):
        gradgradcheck(_of_input(subject, problem), logits)


def vmapped(subject: Subject, problem: Problem) -> None:
    """torch.func's gradient, for many batches at once, is backward's for each."""
    second = replace(problem, input=problem.input.flip(1) / 2)
    pair = torch.stack([problem.input, second.input])
    targets = torch.stack([problem.target, second.target])
    call = subject.bind(**problem.options)
    with blamed_on_the_loss("a gradient by torch.func.vmap(torch.func.grad(loss))"):
        came = torch.func.vmap(torch.func.grad(call))(pair, targets)
    outcomes = [evaluate(subject, p) for p in (problem, second)]
    expected = torch.stack([outcome.gradient for outcome in outcomes])
    expect_close("backward's gradient by torch.func,", came, expected, outcomes[0].value.dtype)


def _few(subject: Subject) -> Iterator[Problem]:
    yield from islice(_smooth(subject), 5)


LAWS = (
    Law("gradcheck", "Its gradient is the derivative that finite differences give", derivative, _smooth),
    Law("gradgradcheck", "Its double backward is the second derivative", second_derivative, _smooth),
    Law("vmap", "torch.func.vmap(grad) gives each batch's gradient", vmapped, _few),
)
