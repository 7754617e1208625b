"""Numbers of several seeds, and tables of them, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean, stdev
from typing import Any


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]


def spread(values: Sequence[float]) -> str:
    """Shares as percent: mean ± standard deviation, which one value does not have."""
    deviation = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{deviation}"


def distinct(values: Iterable[Any]) -> str:
    """The different values in order; None is a value that was not recorded."""
    found = sorted({value for value in values if value is not None})
    return ", ".join(map(str, found)) if found else "not recorded"
