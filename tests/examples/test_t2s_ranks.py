"""Two ranks of T2S-DA train as one process where nothing is drawn, and resume where something is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("kornia")

import t2s_ranks as worker
from ranks import spawn_two

from examples.common.logs import read_log
from examples.common.scenes.toy import write_street_folder
from examples.common.training import CHECKPOINT
from examples.t2s_da.train import train

COLUMNS = ("loss", "source", "target", "confident", "pull", "feature_distance", "masked", "lr")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that two ranks did: starting processes takes seconds, so they do it in one go."""
    folder = tmp_path_factory.mktemp("ranks")
    target = write_street_folder(folder / "target", size=(24, 32), train=5, test=3)
    spawn_two(worker.main, str(folder), str(target))
    return folder


def _checkpoint(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / CHECKPOINT, weights_only=True)
    return state


def _rows(folder: Path) -> list[list[float]]:
    return [[row[c] for c in COLUMNS if c in row] for row in read_log(folder / "log.csv")]


@pytest.mark.parametrize("name", worker.EXACT)
def test_two_ranks_are_one_process_where_nothing_is_drawn(place, tmp_path, name):
    config = worker.config(str(place / "target"), worker.EXACT[name])
    metrics = train(config, tmp_path / "run", place / "kept", progress=False)
    one, both = _rows(tmp_path / "run"), _rows(place / name)
    assert len(both) == worker.STEPS
    for alone, joined in zip(one, both, strict=True):
        assert joined == pytest.approx(alone, rel=1e-4)
    alone, joined = _checkpoint(tmp_path / "run"), _checkpoint(place / name)
    for part in ("student", "teacher", "weights"):
        assert alone[part].keys() == joined[part].keys()
        for key, value in alone[part].items():
            torch.testing.assert_close(joined[part][key], value, rtol=1e-3, atol=1e-5, msg=f"{part} {key}")
    entries = [torch.load(place / f"rank{i}.pt")["metrics"][name]["scores"]["val_alt"] for i in range(2)]
    assert entries[0] == entries[1]
    own = metrics["scores"]["val_alt"]
    assert entries[0]["pixels"] == own["pixels"]
    assert entries[0]["mean_iou"]["mIoU11"] == pytest.approx(own["mean_iou"]["mIoU11"], abs=5e-3)
    for metric in ("ccd", "pdd"):
        assert entries[0][metric]["mean"] == pytest.approx(own[metric]["mean"], rel=1e-2)


def test_drawn_queries_and_negatives_are_all_that_ranks_change(place, tmp_path):
    """With InfoNCE the pull loss of the first step is another draw of one process's."""
    drawn = worker.config(str(place / "target"), ["model.dropout=0.5"])
    train(drawn, tmp_path / "run", place / "kept", stop_after=1, progress=False)
    one, both = (read_log(folder / "log.csv")[0] for folder in (tmp_path / "run", place / "drawn"))
    assert both["confident"] == pytest.approx(one["confident"], rel=1e-5)
    assert both["pull"] != one["pull"]
    assert both["pull"] == pytest.approx(one["pull"], rel=0.3)


def test_two_stopped_ranks_go_on_to_the_same_bits(place):
    whole, parts = _checkpoint(place / "drawn"), _checkpoint(place / "parts")
    for part in ("student", "teacher", "weights"):
        assert [key for key in whole[part] if not torch.equal(whole[part][key], parts[part][key])] == []
    assert _rows(place / "drawn") == _rows(place / "parts")
    states = [[state["random_state"], *state["rank_random_states"]] for state in (whole, parts)]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert not torch.equal(*states[0])  # the ranks drop other channels


def test_a_batch_that_cannot_be_shared_is_refused(place):
    for i in range(2):
        assert "data.batch_size must be a multiple of 2 ranks" in torch.load(place / f"rank{i}.pt")["refusal"]
