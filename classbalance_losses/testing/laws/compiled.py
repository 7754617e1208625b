"""torch.compile in one graph gives eager's numbers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch

from classbalance_losses.testing.laws.law import Law
from classbalance_losses.testing.laws.values import expect_same
from classbalance_losses.testing.problem import Outcome, Problem, draw, evaluate, with_ignored
from classbalance_losses.testing.subject import Subject
from classbalance_losses.testing.violation import blamed_on_the_loss


def _one_of_each(subject: Subject) -> Iterator[Problem]:
    axes = next(d for d in (2, 1, 3, 0) if d in subject.dims)
    problem = draw(subject, {0: (4,), 1: (1, 4), 2: (1, 2, 2), 3: (1, 2, 2, 1)}[axes], reduction=subject.mean)
    yield problem
    if subject.ignores:
        yield with_ignored(subject, problem)


def compiled(subject: Subject, problem: Problem) -> None:
    """One graph, traced through autograd; code generation is the compiler's affair and left out."""
    expected = evaluate(subject, problem)
    logits = problem.input.clone().requires_grad_()
    torch._dynamo.reset()  # or earlier checks count as recompilations of this one
    try:
        with warnings.catch_warnings(), blamed_on_the_loss("a loss by torch.compile(fullgraph=True)"):
            warnings.simplefilter("ignore")  # the compiler's own
            function = torch.compile(subject.bind(**problem.options), fullgraph=True, backend="aot_eager")
            value = function(logits, problem.target)
            (gradient,) = torch.autograd.grad(value.sum(), logits)
    finally:
        torch._dynamo.reset()
    expect_same(Outcome(value.detach(), gradient), expected, "by torch.compile eager's")


LAWS = (
    Law("compile", "torch.compile(fullgraph=True) gives eager's value and gradient", compiled, _one_of_each),
)
