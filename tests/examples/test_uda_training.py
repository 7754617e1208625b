"""Training with GBW: every method, exact resume, two ranks, logged class weights, grids from runs to tables."""

from __future__ import annotations

import json
import math
import shutil
import socket
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
pytest.importorskip("matplotlib")

import uda_ranks as worker

from examples.common.config import run_folder
from examples.common.logs import read_log
from examples.common.training import CHECKPOINT, one_thread
from examples.semidavil.data.toy import write_street_folder
from examples.uda_gbw import grid
from examples.uda_gbw.config import CONFIGS, Config, load_config
from examples.uda_gbw.data import Classes
from examples.uda_gbw.engine import Engine
from examples.uda_gbw.grid import GRIDS, load_grid
from examples.uda_gbw.smoke import RUNS, smoke
from examples.uda_gbw.train import main, train

COST = ("images_per_second", "peak_memory_mib")


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target in CamVid's layout, and `kept` with the rendered source."""
    folder = tmp_path_factory.mktemp("uda")
    write_street_folder(folder / "target", size=(32, 48), train=4, test=2)
    return folder


def _config(place: Path, *overrides: str) -> Config:
    config = load_config("smoke", overrides)
    return replace(config, data=replace(config.data, target=str(place / "target")))


def _state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / CHECKPOINT, weights_only=True)
    return state


def _log(folder: Path) -> list[dict[str, float]]:
    rows = read_log(folder / "log.csv")
    return [{key: value for key, value in row.items() if key not in COST} for row in rows]


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
        "stopped after step 2 and resumed: the same losses, class weights and scores"
        in capsys.readouterr().out
    )
    assert found.keys() == RUNS.keys()
    heads = {
        "source only": ["source"],
        "entropy": ["source", "entropy"],
        "AdaptSegNet": ["source", "feature"],
    }
    heads |= {"ADVENT": ["source"], "DACS": ["source", "mixed"], "DAFormer": ["source", "mixed"]}
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
def test_a_stopped_run_goes_on_to_the_same_bits(place, tmp_path, overrides, stop_after):
    config = _config(place, *overrides, "training.checkpoint_every=3", "model.dropout=0.5")
    whole = train(config, tmp_path / "whole", place / "kept", progress=False)
    assert train(config, tmp_path / "parts", place / "kept", stop_after=stop_after, progress=False) == {}
    assert len(_log(tmp_path / "parts")) == stop_after
    parts = train(config, tmp_path / "parts", place / "kept", progress=False)
    states = [_state(tmp_path / name) for name in ("whole", "parts")]
    for state in states:
        del state["seconds"]
    assert _different(*states) == []
    assert _log(tmp_path / "whole") == _log(tmp_path / "parts")
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
        train(other, tmp_path / "parts", place / "kept", progress=False)


@pytest.mark.parametrize("overrides", [['method="entropy"'], ['method="daformer"', "mic.enabled=true"]])
def test_labels_of_the_target_change_nothing(place, tmp_path, overrides):
    """Overwrite those of all training images, and everything stays the same to the last bit."""
    config = _config(place, *overrides, "training.iterations=2")
    train(config, tmp_path / "before", place / "kept", progress=False)
    other = tmp_path / "target"
    shutil.copytree(place / "target", other)
    for stem in (other / "splits" / "train_alt.txt").read_text().split():
        Image.new("L", (48, 32), 10).save(other / "train" / "labels" / f"{stem}.png")
    config = replace(config, data=replace(config.data, target=str(other)))
    train(config, tmp_path / "after", place / "kept", progress=False)
    states = [_state(tmp_path / name) for name in ("before", "after")]
    for state in states:
        del state["seconds"]
    assert _different(*states) == []


def _same_gradients(alone: dict[int, Any], joined: dict[int, Any]) -> None:
    """Adam's averages of all steps' gradients agree.

    The weights themselves say less: a key's bias, or one before BatchNorm, has a gradient of rounding alone, and Adam
    makes steps of full length of it.
    """
    assert alone.keys() == joined.keys()
    for number, one in alone.items():
        gradient, other = one["exp_avg"], joined[number]["exp_avg"]
        difference = float((gradient - other).abs().max())
        assert difference <= 5e-7 + 2e-3 * float(gradient.abs().max()), number


def test_two_ranks_are_one_process(place, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    target = str(place / "target")
    torch.multiprocessing.spawn(worker.main, args=(2, str(tmp_path), target, port), nprocs=2)
    for name, overrides in worker.RUNS.items():
        config = worker.config(target, overrides)
        metrics = train(config, tmp_path / f"alone-{name}", place / "kept", progress=False)
        both = json.loads((tmp_path / name / "metrics.json").read_text())
        assert (metrics["ranks"], both["ranks"]) == (1, 2)
        for one, joined in zip(_log(tmp_path / f"alone-{name}"), _log(tmp_path / name), strict=True):
            assert joined == pytest.approx(one, rel=1e-4)
        for loss, history in metrics["class_weights"].items():
            for one, joined in zip(history["weights"], both["class_weights"][loss]["weights"], strict=True):
                assert joined == pytest.approx(one, abs=2e-4)
        alone, joined = (_state(tmp_path / folder) for folder in (f"alone-{name}", name))
        for part in ("optimizer", "critic") if name == "adversarial" else ("optimizer",):
            _same_gradients(alone[part]["state"], joined[part]["state"])
    for own in range(2):
        assert "must be a multiple of 2 ranks" in torch.load(tmp_path / f"rank{own}.pt")["refusal"]


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


def test_a_loss_that_is_not_finite_stops_the_run(place, tmp_path):
    config = _config(place, 'method="entropy"', "entropy.weight=inf")
    with pytest.raises(FloatingPointError, match="at step 1: lower training"):
        train(config, tmp_path / "run", place / "kept", progress=False)


def test_shipped_configurations_are_valid_and_say_what_they_are():
    configs = {path.stem: load_config(path) for path in sorted(CONFIGS.glob("*.toml"))}
    assert {"camvid", "gta5", "gta5_hrda", "smoke", "synthia"} <= configs.keys()
    assert all(config.note for config in configs.values())
    assert len({json.dumps(config.as_dict()) for config in configs.values()}) == len(configs)


@pytest.mark.parametrize("path", sorted(GRIDS.glob("*.toml")), ids=lambda path: path.stem)
def test_grids_name_valid_runs(path):
    found = load_grid(path.stem)
    folders = {
        run_folder(Path(), "x", found.run(row, variant, seed).as_dict())
        for row, variant, seed in product(found.rows, found.variants, found.seeds)
    }
    shared = len(found.seeds) if path.stem == "readings" else 0  # "no weights" is the same for every λ
    assert len(folders) == len(found.rows) * len(found.variants) * len(found.seeds) - shared


def test_grids_that_are_wrong_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="those here are gta5_table1, readings"):
        load_grid("nonesuch")
    path = tmp_path / "tiny.toml"
    path.write_text('title = "Tiny"\n')
    with pytest.raises(ValueError, match="lacks the key 'config'"):
        load_grid(str(path))
    parts = '[[row]]\nlabel = "a"\nset = []\n[[variant]]\nlabel = "b"\nset = []\n'
    path.write_text('title = "Tiny"\nconfig = "smoke"\nseeds = [0]\nweights_of = [["a", "c"]]\n' + parts)
    with pytest.raises(ValueError, match="weights_of must be pairs of a row and a variant"):
        load_grid(str(path))


def test_a_grid_from_runs_to_its_page(place, tmp_path, capsys):
    path = tmp_path / "tiny.toml"
    path.write_text(
        'title = "Tiny"\nconfig = "smoke"\nseeds = [0, 1]\nset = ["training.iterations=2"]\npaper = "Table 9"\n'
        'weights_of = [["source only", "GBW"]]\n'
        '[[variant]]\nlabel = "CE"\nset = [\'weighting.scheme="none"\']\n[[variant]]\nlabel = "GBW"\nset = []\n'
        '[[row]]\nlabel = "source only"\nset = []\npaper = [73.8, 74.7]\n'
        '[[row]]\nlabel = "MinEnt"\nset = [\'method="entropy"\']\n'
    )
    folders = [
        "--target",
        str(place / "target"),
        "--runs",
        str(tmp_path / "runs"),
        "--out",
        str(tmp_path / "out"),
    ]
    grid.main(["report", str(path), *folders])
    assert "No run is finished" in capsys.readouterr().out
    grid.main(["run", str(path), "--rows", "source only", "--device", "cpu", *folders])
    with pytest.raises(ValueError, match="has the rows source only, MinEnt, got 'other'"):
        grid.main(["run", str(path), "--rows", "other", "--device", "cpu", *folders])
    grid.main(["report", str(path), *folders])
    text = (tmp_path / "out" / "tiny.md").read_text()
    assert "|  | CE | GBW | difference | paper, CE | paper, GBW |" in text
    assert "(2) | 73.8 | 74.7 |" in text
    assert "| MinEnt | – | – | – | – | – |" in text
    assert "| source only | CE | 1.0000 | 1.0000 | 0.0000 |" in text
    assert (
        "Runs: 4, of 2 steps; batch 2 of source and of target; training crops (height×width): 32×48; seeds 0, 1"
        in text
    )
    content = json.loads((tmp_path / "out" / "tiny.json").read_text())
    assert [run["seed"] for run in content["rows"]["source only"]["GBW"]] == [0, 1]
    for name in ("tiny_scores_val_alt", "tiny_weights_source_only_gbw", "tiny_ranges_source_only_gbw"):
        assert (tmp_path / "out" / "plots" / f"{name}.png").is_file()
        assert f"(plots/{name}.png)" in text


def test_the_command_line(place, tmp_path, capsys):
    overrides = ["training.iterations=1", "data.streets=6"]
    arguments = [
        "--target",
        str(place / "target"),
        "--runs",
        str(tmp_path),
        "--device",
        "cpu",
        "--set",
        *overrides,
    ]
    main(["smoke", *arguments])
    assert "| mIoU11 | sky |" in capsys.readouterr().out
    folder = run_folder(tmp_path, "smoke", load_config("smoke", overrides).as_dict())
    assert json.loads((folder / "config.json").read_text())["method"] == "source_only"
    with pytest.raises(SystemExit):
        main([])
