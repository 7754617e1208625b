"""The generated blocks of the README and of pages of the documentation, each between two markers of its name."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS_PAGE = ROOT / "docs" / "results.md"
CHOOSING_PAGE = ROOT / "docs" / "choosing.md"
SPEED_PAGE = ROOT / "docs" / "speed.md"


def fill(text: str, name: str, block: str) -> str:
    """Put a block between the markers ``<!-- name:begin -->`` and ``<!-- name:end -->``.

    Raises:
        ValueError: the markers are missing.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"the page lacks the markers {begin} and {end}")
    return f"{before}{begin}\n{block}\n{end}{after}"


def update(page: Path, name: str, block: str) -> None:
    """Write a block into a page."""
    page.write_text(fill(page.read_text(), name, block))
