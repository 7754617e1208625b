"""What a check found: a table of laws, and for each that fails the smallest input that shows it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from classbalance_losses.testing.problem import Problem

HOLDS, FAILS, NOT_APPLICABLE, SKIPPED = "holds", "fails", "not applicable", "skipped"
OUTCOMES = (HOLDS, FAILS, NOT_APPLICABLE, SKIPPED)


@dataclass(frozen=True)
class Result:
    """One law's.

    Attributes:
        law: its name.
        says: what it asks of a loss.
        outcome: "holds", "fails", "not applicable" or "skipped".
        why: the reason where it was not tried.
        expected: where it fails, what the law asks for.
        came: where it fails, what came instead.
        problem: where it fails, the smallest input found that shows it.
    """

    law: str
    says: str
    outcome: str
    why: str = ""
    expected: str = ""
    came: str = ""
    problem: Problem | None = None

    def __bool__(self) -> bool:
        """Whether it does not fail."""
        return self.outcome != FAILS

    def __str__(self) -> str:
        """Everything about it."""
        lines = [f"{self.law}: {self.outcome}. {self.says}."]
        lines += [f"  {self.why}"] if self.why else []
        if self.outcome == FAILS:
            lines += [f"  expected {self.expected}", f"  came     {self.came}"]
        if self.problem is not None:
            lines += ["  smallest input found:", textwrap.indent(str(self.problem), "    ")]
        return "\n".join(lines)


@dataclass(frozen=True)
class Report:
    """All laws' results; true where none fails and at least one holds. ``print`` it to read it."""

    name: str
    results: tuple[Result, ...]

    def __bool__(self) -> bool:
        """Whether no law fails, and some law was tried."""
        return all(self.results) and any(result.outcome == HOLDS for result in self.results)

    def __iter__(self) -> Iterator[Result]:
        """One result a law."""
        return iter(self.results)

    def __getitem__(self, law: str) -> Result:
        """The result of a law.

        Raises:
            KeyError: there is no such law.
        """
        for result in self.results:
            if result.law == law:
                return result
        raise KeyError(f"{law!r}: expected one of {[result.law for result in self.results]}.")

    @property
    def failures(self) -> tuple[Result, ...]:
        """The laws that fail."""
        return tuple(result for result in self.results if not result)

    def __str__(self) -> str:
        """A table, then what was seen of each law that fails."""
        found = [result.outcome for result in self.results]
        counts = ", ".join(f"{found.count(outcome)} {outcome}" for outcome in OUTCOMES if outcome in found)
        width = max((len(result.law) for result in self.results), default=0)
        lines = [f"{self.name}: {counts}", ""]
        for result in self.results:
            outcome = result.outcome.upper() if not result else result.outcome
            lines.append(f"{result.law:<{width}}  {outcome:<14}  {result.why or result.says}")
        return "\n".join([*lines, *(f"\n{failure}" for failure in self.failures)])

    __repr__ = __str__  # what pytest shows of `assert report`
