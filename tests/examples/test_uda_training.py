"""Training with GBW: every method, exact resume, target labels that nobody reads, logged class weights."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from uda_files import checkpoint, losses, small_config

from examples.__main__ import main
from examples.common.config import run_folder
from examples.common.training import one_thread
from examples.uda_gbw.config import load_config
from examples.uda_gbw.data import Classes
from examples.uda_gbw.engine import Engine
from examples.uda_gbw.smoke import RUNS, smoke
from examples.uda_gbw.train import train


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def _different(one: Any, other: Any, where: str = "") -> list[str]:
    """The places where two nested states differ."""
    if isinstance(one, Tensor):
        return [] if torch.equal(one, other) else [where]
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return [place for key in one for place in _different(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, (list, tuple)):
        return [
            place
            for i, pair in enumerate(zip(one, other, strict=True))
            for place in _different(*pair, f"{where}.{i}")
        ]
    return [] if one == other else [where]


def test_the_smoke_run_goes_through_every_family(capsys):
    found = smoke(device="cpu")
    assert (
        "stopped after step 2 and resumed: the same losses, scores, class_weights" in capsys.readouterr().out
    )
    assert found.keys() == RUNS.keys()
    heads = {
        "source only": ["source"],
        "entropy": ["source", "entropy"],
        "AdaptSegNet": ["source", "feature"],
    }
    heads |= {"ADVENT": ["source", "entropy"], "DACS": ["source", "mixed"], "DAFormer": ["source", "mixed"]}
    heads["DAFormer + HRDA + MIC"] = [
        a + b for a, b in product(("source", "mixed", "masked"), ("", "_detail"))
    ]
    for name, metrics in found.items():
        assert list(metrics["class_weights"]) == heads[name]
        for history in metrics["class_weights"].values():
            assert history["steps"] == [1, 2, 3, 4]
            for weights in history["weights"]:
                assert sum(weights) == pytest.approx(11, abs=1e-3)  # the programme's constraint
                assert min(weights) >= 0
        assert math.isfinite(metrics["scores"]["val_alt"]["mean_iou"]["mIoU11"])


@pytest.mark.parametrize(
    ("overrides", "stop_after"),
    [
        (['method="advent"'], 2),
        (['method="dacs"', 'weighting.scheme="curriculum"', "weighting.curriculum_every=2"], 1),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_bits(uda_place, tmp_path, overrides, stop_after):
    config = small_config(uda_place, *overrides, "training.checkpoint_every=3", "model.dropout=0.5")
    whole = train(config, tmp_path / "whole", uda_place / "kept", progress=False)
    assert train(config, tmp_path / "parts", uda_place / "kept", stop_after=stop_after, progress=False) == {}
    assert len(losses(tmp_path / "parts")) == stop_after
    parts = train(config, tmp_path / "parts", uda_place / "kept", progress=False)
    states = [checkpoint(tmp_path / name) for name in ("whole", "parts")]
    for state in states:
        del state["seconds"]
    assert _different(*states) == []
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert parts["scores"] == whole["scores"]
    assert parts["class_weights"] == whole["class_weights"]
    weights = [(tmp_path / name / "weights_source.csv").read_text() for name in ("whole", "parts")]
    assert weights[0] == weights[1]
    assert weights[0].startswith("step,sky,building,pole,road,")
    assert (
        train(config, tmp_path / "parts", Path("nowhere"), progress=False) == parts
    )  # finished: not repeated
    (tmp_path / "parts" / "metrics.json").unlink()
    other = replace(config, training=replace(config.training, seed=7))
    with pytest.raises(ValueError, match="another configuration"):
        train(other, tmp_path / "parts", uda_place / "kept", progress=False)


@pytest.mark.parametrize("overrides", [['method="entropy"'], ['method="daformer"', "mic.enabled=true"]])
def test_labels_of_the_target_change_nothing(uda_place, tmp_path, overrides):
    """Overwrite those of all training images, and everything stays the same to the last bit."""
    config = small_config(uda_place, *overrides, "training.iterations=2")
    train(config, tmp_path / "before", uda_place / "kept", progress=False)
    other = tmp_path / "target"
    shutil.copytree(uda_place / "target", other)
    for stem in (other / "splits" / "train_alt.txt").read_text().split():
        Image.new("L", (48, 32), 10).save(other / "train" / "labels" / f"{stem}.png")
    config = replace(config, data=replace(config.data, target=str(other)))
    train(config, tmp_path / "after", uda_place / "kept", progress=False)
    states = [checkpoint(tmp_path / name) for name in ("before", "after")]
    for state in states:
        del state["seconds"]
    assert _different(*states) == []


def test_rates_warm_up_and_decay():
    config = load_config("smoke", ["training.iterations=10", "training.warmup=4", "training.decoder_lr=3.0"])
    engine = Engine(config, Classes(("a", "b"), torch.ones(1, 2)), torch.device("cpu"))
    rates = []
    for _ in range(10):
        rates.append(engine.scheduler.get_last_lr())
        engine.optimizer.step()
        engine.scheduler.step()
    wanted = [1e-3 * min((t + 1) / 5, 1) * (1 - t / 10) for t in range(10)]
    assert [rate for rate, _ in rates] == pytest.approx(wanted)
    assert [rate for _, rate in rates] == pytest.approx([3 * rate for rate in wanted])


def test_a_loss_that_is_not_finite_stops_the_run(uda_place, tmp_path):
    config = small_config(uda_place, 'method="entropy"', "entropy.weight=inf")
    with pytest.raises(FloatingPointError, match="at step 1: lower training"):
        train(config, tmp_path / "run", uda_place / "kept", progress=False)


def test_the_command_line(uda_place, tmp_path, capsys):
    overrides = ["training.iterations=1", "data.streets=6"]
    arguments = [
        "--target",
        str(uda_place / "target"),
        "--runs",
        str(tmp_path),
        "--device",
        "cpu",
        "--set",
        *overrides,
    ]
    main(["uda_gbw", "train", "smoke", *arguments])
    assert "| mIoU11 | sky |" in capsys.readouterr().out
    folder = run_folder(tmp_path, "smoke", load_config("smoke", overrides).as_dict())
    assert json.loads((folder / "config.json").read_text())["method"] == "source_only"
    with pytest.raises(SystemExit):
        main(["uda_gbw", "train"])
