"""What a law is: a name, a sentence, when it applies, the inputs it is tried on, and the check."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from classbalance_losses.testing.problem import Problem
from classbalance_losses.testing.subject import Subject


def always(subject: Subject) -> str:
    """A law for every loss."""
    return ""


def needs(*options: str) -> Callable[[Subject], str]:
    """A law for losses that take these options."""
    return partial(_missing, options=options)  # no closure, so that a law can be pickled


def _missing(subject: Subject, options: tuple[str, ...]) -> str:
    absent = [name for name in options if name not in subject.options]
    return f"the loss takes no {', '.join(absent)}" if absent else ""


def needs_ignoring(subject: Subject) -> str:
    """A law for losses that leave a label out."""
    return "" if subject.ignores else "the loss has no label to ignore: no ignore_index was given or found"


@dataclass(frozen=True)
class Law:
    """One law.

    Attributes:
        name: how ``skip`` and a report call it.
        says: what it asks of a loss, in a sentence.
        check: raises ViolationError where the loss breaks the law on the problem.
        problems: what it is tried on, in rising order of size.
        missing: why the law does not apply to the loss, or nothing.
        shrinks: whether a single pixel of a large problem may show the same.
    """

    name: str
    says: str
    check: Callable[[Subject, Problem], None]
    problems: Callable[[Subject], Iterable[Problem]]
    missing: Callable[[Subject], str] = always
    shrinks: bool = False
