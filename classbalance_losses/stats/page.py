"""What the pages of the tasks have in common: a page that a person can read, of few lines and aligned columns."""

from __future__ import annotations

from collections.abc import Sequence

MOST_ROWS = 40  # classes on a page, and numbers in a list to paste
MOST_NAMED = 20  # classes in a sentence

Clamp = tuple[float, float]


def rounded(weight: float, clamp: Clamp | None) -> float:
    """Return a weight within the clamp, in six digits."""
    if clamp is not None:
        weight = min(max(weight, clamp[0]), clamp[1])
    return float(f"{weight:.6g}")


def cell(weight: float | None) -> str:
    """Return a weight as the table shows it."""
    return "-" if weight is None else f"{weight:.4g}"


def header(*names: str) -> list[list[str]]:
    """Return the two lines of column names: the last words of long ones are below the others."""
    return [[name.rpartition("_")[0] for name in names], [name.rpartition("_")[2] for name in names]]


def table(head: list[list[str]], rows: list[list[str]], sizes: Sequence[int]) -> list[str]:
    """Return a table with a line a row; of very many rows those of the largest and of the smallest sizes."""
    order: list[int] = list(range(len(rows)))
    if len(rows) <= MOST_ROWS:
        return aligned([*head, *(rows[index] for index in order)])
    order.sort(key=lambda index: -sizes[index])
    half = MOST_ROWS // 2
    there = [index for index in order if sizes[index]]
    shown = [*there[:half], *there[half:][-half:]]
    lines = aligned([*head, *(rows[index] for index in shown)])
    gap = len(rows) - len(shown)
    lines.insert(len(head) + half, f"… {gap:,} more, which --json FILE has")
    return lines


def aligned(rows: list[list[str]]) -> list[str]:
    """Align the columns, the second (names) to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            text.ljust(width) if column == 1 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def named(indices: list[int]) -> str:
    """Return the numbers of classes for a sentence."""
    return ", ".join([*map(str, indices[:MOST_NAMED]), *(["…"] if len(indices) > MOST_NAMED else [])])


def clamp_note(clamp: Clamp | None) -> list[str]:
    """Say what the weights are held to."""
    return (
        [] if clamp is None else [f"Weights are held to {clamp[0]:g} at least and {clamp[1]:g} at most.", ""]
    )
