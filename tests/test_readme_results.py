"""The numbers of README and docs/results.md are those of the committed result files."""

from __future__ import annotations

import pytest

pytest.importorskip("torchmetrics")

from benchmarks.accuracy.readme import readme_block, results_block, study_block
from benchmarks.papers.lines import Line
from benchmarks.papers.readme import papers_block
from benchmarks.readme_block import CHOOSING_PAGE, README, RESULTS_PAGE, fill


def test_the_results_are_up_to_date() -> None:
    for page, name, block in (
        (README, "results", readme_block()),
        (RESULTS_PAGE, "results", results_block()),
        (CHOOSING_PAGE, "study", study_block()),
    ):
        text = page.read_text()
        assert fill(text, name, block) == text, "run: python -m benchmarks.accuracy.readme"


def test_the_papers_block_is_up_to_date() -> None:
    text = RESULTS_PAGE.read_text()
    assert fill(text, "papers", papers_block()) == text, "run: python -m benchmarks.papers.readme"


def test_a_gain_is_that_of_common_seeds() -> None:
    line = Line("here", {0: 10.0, 1: 20.0}, {1: 23.0, 2: 90.0})
    assert line.cells() == ["here", "15.0 ± 7.1", "56.5 ± 47.4", "+3.0 (1)"]


def test_missing_markers_are_told() -> None:
    with pytest.raises(ValueError, match="markers"):
        fill("no markers", "results", "block")
