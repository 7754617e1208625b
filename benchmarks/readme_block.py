"""The generated blocks of the project's README, each between two markers of its name."""

from __future__ import annotations

from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def fill(text: str, name: str, block: str) -> str:
    """Put a block between the markers ``<!-- name:begin -->`` and ``<!-- name:end -->``.

    Raises:
        ValueError: the markers are missing.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"README.md lacks the markers {begin} and {end}")
    return f"{before}{begin}\n{block}\n{end}{after}"


def update(name: str, block: str) -> None:
    """Write a block into the README."""
    README.write_text(fill(README.read_text(), name, block))
