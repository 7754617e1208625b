"""Two ranks train as one process on the joined batch."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("kornia")

import uda_ranks as worker
from ranks import spawn_two
from uda_files import checkpoint, losses

from examples.common.training import one_thread
from examples.uda_gbw.train import train


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def _same_gradients(alone: dict[int, Any], joined: dict[int, Any]) -> None:
    """Adam's averages of all steps' gradients agree.

    The weights themselves say less: a key's bias, or one before BatchNorm, has a gradient of rounding alone, and Adam
    makes steps of full length of it.
    """
    assert alone.keys() == joined.keys()
    for number, one in alone.items():
        gradient, other = one["exp_avg"], joined[number]["exp_avg"]
        difference = float((gradient - other).abs().max())
        assert difference <= 5e-7 + 5e-3 * float(gradient.abs().max()), number


def test_two_ranks_are_one_process(uda_place, tmp_path):
    target = str(uda_place / "target")
    spawn_two(worker.main, str(tmp_path), target)
    for name, overrides in worker.RUNS.items():
        config = worker.config(target, overrides)
        metrics = train(config, tmp_path / f"alone-{name}", uda_place / "kept", progress=False)
        both = json.loads((tmp_path / name / "metrics.json").read_text())
        assert (metrics["ranks"], both["ranks"]) == (1, 2)
        for one, joined in zip(losses(tmp_path / f"alone-{name}"), losses(tmp_path / name), strict=True):
            assert joined == pytest.approx(one, rel=1e-4)
        for loss, history in metrics["class_weights"].items():
            for one, joined in zip(history["weights"], both["class_weights"][loss]["weights"], strict=True):
                assert joined == pytest.approx(one, abs=2e-4)
        alone, joined = (checkpoint(tmp_path / folder) for folder in (f"alone-{name}", name))
        for part in ("optimizer", "critic") if name == "adversarial" else ("optimizer",):
            _same_gradients(alone[part]["state"], joined[part]["state"])
    for own in range(2):
        assert "must be a multiple of 2 ranks" in torch.load(tmp_path / f"rank{own}.pt")["refusal"]
