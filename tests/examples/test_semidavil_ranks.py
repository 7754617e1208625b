"""Two ranks train as one process on the joined batch, and go on from where they were stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("kornia")

import semidavil_ranks as worker
from ranks import spawn_two

from examples.common.distributed import (
    all_sum,
    any_rank,
    first_rank_first,
    gathered,
    join_batch_norm,
    joined_sum,
    process_group,
    rank,
)
from examples.common.logs import read_log
from examples.common.scenes.toy import write_street_folder
from examples.common.training import CHECKPOINT
from examples.semidavil.train import train

COLUMNS = ("loss", "supervised", "consistency", "confident", "lr")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that two ranks did: starting processes takes seconds, so they do it in one go."""
    folder = tmp_path_factory.mktemp("ranks")
    target = write_street_folder(folder / "target", size=(24, 32), train=6, test=3)
    spawn_two(worker.main, str(folder), str(target))
    return folder


@pytest.fixture(scope="module")
def ranks(place: Path) -> list[dict[str, Any]]:
    return [torch.load(place / f"rank{number}.pt") for number in range(2)]


def _checkpoint(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / CHECKPOINT, weights_only=True)
    return state


@pytest.mark.parametrize("name", worker.RUNS)
def test_two_ranks_are_one_process(place, ranks, tmp_path, name):
    config = worker.config(str(place / "target"), worker.RUNS[name])
    metrics = train(config, tmp_path / "run", place / "kept", progress=False)
    logs = [read_log(folder / "log.csv") for folder in (tmp_path / "run", place / name)]
    assert [row["step"] for row in logs[1]] == [1, 2, 3, 4]
    for one, both in zip(*logs, strict=True):
        assert [both[c] for c in COLUMNS] == pytest.approx([one[c] for c in COLUMNS], rel=1e-4)
        assert one["consistency"] > 0
    alone, joined = _checkpoint(tmp_path / "run"), _checkpoint(place / name)
    for part in ("student", "teacher", "loss"):
        assert alone[part].keys() == joined[part].keys()
        for key, value in alone[part].items():
            if (
                "k_proj.bias" in key
            ):  # a softmax does not see it: its gradient is rounding alone, which Adam scales up
                continue
            torch.testing.assert_close(joined[part][key], value, rtol=1e-4, atol=2e-6, msg=f"{part} {key}")
    assert alone["teacher"]["n_averaged"] == joined["teacher"]["n_averaged"] == worker.STEPS + 1
    for result in ranks:
        assert (
            result["metrics"][name]["scores"]["val_alt"]["pixels"] == metrics["scores"]["val_alt"]["pixels"]
        )
        assert result["metrics"][name]["ranks"] == 2
    scores = ranks[0]["metrics"][name]["scores"]["val_alt"]
    assert scores["mean_iou"] == pytest.approx(metrics["scores"]["val_alt"]["mean_iou"], abs=2e-3)
    assert [row["step"] for row in read_log(place / name / "scores_val_alt.csv")] == [2, 4]


def test_the_ranks_had_unequal_numbers_of_confident_pixels(ranks):
    one, other = (result["confident"] for result in ranks)
    assert len(one) == len(other) == worker.STEPS * 4  # three runs, one of them in two pieces
    assert all(a != b for a, b in zip(one[: worker.STEPS], other[: worker.STEPS], strict=True))
    assert min(one[: worker.STEPS]) > 0


def test_two_stopped_ranks_go_on_to_the_same_bits(place):
    whole, parts = _checkpoint(place / "dropout"), _checkpoint(place / "parts")
    for part in ("student", "teacher", "loss"):
        assert [key for key in whole[part] if not torch.equal(whole[part][key], parts[part][key])] == []
    logs = [read_log(place / name / "log.csv") for name in ("dropout", "parts")]
    assert [[row[c] for c in COLUMNS] for row in logs[0]] == [[row[c] for c in COLUMNS] for row in logs[1]]
    assert len(logs[1]) == worker.STEPS
    states = [[state["random_state"], *state["rank_random_states"]] for state in (whole, parts)]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert not torch.equal(*states[0])  # the ranks drop other channels


def test_one_process_goes_on_from_two_ranks(place, tmp_path):
    """Not to the same bits where there is dropout, but from the same weights."""
    config = worker.config(str(place / "target"), worker.RUNS["whole"])
    state = _checkpoint(place / "whole")
    (tmp_path / "run").mkdir()
    torch.save(state, tmp_path / "run" / CHECKPOINT)
    metrics = train(config, tmp_path / "run", place / "kept", progress=False)
    both = torch.load(place / "rank0.pt")["metrics"]["whole"]
    assert metrics["scores"]["val_alt"]["iou"] == pytest.approx(both["scores"]["val_alt"]["iou"], abs=1e-6)
    assert metrics["seconds"] == pytest.approx(state["seconds"], abs=0.1)


def test_only_the_first_rank_writes(place):
    files = {path.name for path in (place / "whole").iterdir()}
    assert {"log.csv", "metrics.json", "checkpoint.pt", "config.json"} <= files
    assert [name for name in files if "partial" in name] == []


def test_a_batch_that_cannot_be_shared_is_refused(ranks):
    for result in ranks:
        assert (
            "data.batch_size must be a multiple of 2 ranks x training.accumulation = 1" in result["refusal"]
        )


def test_joined_batch_norm_is_batch_norm_of_the_joined_batch(ranks):
    whole = worker.normalized(worker.norms(), slice(None))
    for key in ("output", "input", "eval"):
        joined = torch.cat([result["norms"][key] for result in ranks])
        torch.testing.assert_close(joined, whole[key], rtol=1e-4, atol=1e-5)
    summed = [sum(gradients) for gradients in zip(*(r["norms"]["gradients"] for r in ranks), strict=True)]
    torch.testing.assert_close(summed, whole["gradients"], rtol=1e-4, atol=1e-4)
    for result in ranks:
        assert result["norms"]["state"].keys() == whole["state"].keys()
        torch.testing.assert_close(result["norms"]["state"], whole["state"], rtol=1e-5, atol=1e-6)


def test_sums_over_ranks(ranks):
    for number, result in enumerate(ranks):
        found = result["helpers"]
        assert found["joined"] == (3.0, 6.0)  # 1 + 2; the factor 3, times two ranks
        assert found["sum"] == 3
        assert found["any"] == (True, False)
        assert found["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert found["seen"] == [number]


def test_one_process_is_its_own_group():
    share = torch.ones((), requires_grad=True)
    assert joined_sum(share) is share
    assert torch.equal(all_sum(torch.ones(2)), torch.ones(2))
    assert (rank(), any_rank(True), any_rank(False), gathered(5)) == (0, True, False, [5])
    with first_rank_first(), process_group("cpu") as device:
        assert device == torch.device("cpu")
    net = worker.norms()
    assert join_batch_norm(net, device) is net
    assert type(net[1]) is torch.nn.BatchNorm2d
