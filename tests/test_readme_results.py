"""The README's numbers are those of the committed result files."""

from __future__ import annotations

import pytest

pytest.importorskip("torchmetrics")

from benchmarks.accuracy.readme import results_block
from benchmarks.readme_block import README, fill


def test_the_results_block_is_up_to_date() -> None:
    text = README.read_text()
    assert fill(text, "results", results_block()) == text, "run: python -m benchmarks.accuracy.readme"


def test_missing_markers_are_told() -> None:
    with pytest.raises(ValueError, match="markers"):
        fill("no markers", "results", "block")
