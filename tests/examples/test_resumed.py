"""The check of exact resuming that every smoke run makes finds a run that goes another way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from examples.common.resumed import check_resumed


def runs(*, drift: float = 0.0, score: float = 0.0) -> Any:
    """A run of four steps, whose losses or score are others where it was stopped."""

    def train(folder: Path, stop_after: int) -> dict[str, Any]:
        folder.mkdir(exist_ok=True)
        off = 1.0 if folder.name.endswith("resumed") else 0.0
        rows = [f"{step},{step + off * drift},{off + step}" for step in range(1, (stop_after or 4) + 1)]
        (folder / "log.csv").write_text("\n".join(["step,loss,images_per_second", *rows]))
        return {"scores": {"mIoU": off * score}}

    return train


def test_equal_runs_pass_whatever_they_cost(tmp_path, capsys):
    log = check_resumed(runs(), tmp_path / "whole", 4)
    assert [row["loss"] for row in log] == [1, 2, 3, 4]
    assert "stopped after step 2 and resumed: the same losses, scores" in capsys.readouterr().out


@pytest.mark.parametrize("difference", [{"drift": 1e-6}, {"score": 1e-6}])
def test_another_way_is_found(tmp_path, difference):
    with pytest.raises(RuntimeError, match="after step 2 went another way"):
        check_resumed(runs(**difference), tmp_path / "whole", 4)
