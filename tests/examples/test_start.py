"""The scripts and the notebook of `examples/start` run, for a few steps, and the two processes do what is said."""

from __future__ import annotations

import importlib
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import spawn_two

pytest.importorskip("matplotlib", reason="the notebook draws")

import matplotlib
import start_ranks as worker
from matplotlib import pyplot

import classbalance_losses
from examples.common.organs import CLASSES as ORGANS
from examples.common.streets import CLASSES
from examples.start import data, two_processes

ROOT = Path(__file__).parents[2]
START = ROOT / "examples" / "start"
SCRIPTS = {  # what it needs besides torch, and the scores that it prints for each loss
    "plain_pytorch": ([], ("CE", "DyCE"), len(CLASSES)),
    "segformer_trainer": (["transformers", "accelerate"], ("SegFormer's", "DyCE"), len(CLASSES)),
    "monai_volumes": (["monai"], ("CE + Dice", "DyCE + Dice"), len(ORGANS)),
    "binary_cracks": ([], ("BCE", "weighted BCE", "DyCE + Dice"), 3),
    "long_tail": ([], ("CE", "in the loss", "afterwards"), len(CLASSES)),
}
OTHERS = {"lightning_logging", "two_processes"}


@pytest.fixture(autouse=True)
def _reference() -> Any:
    """A few steps are not worth the seconds that the compiled loops take to compile."""
    with classbalance_losses.use_backend("reference"):
        yield


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_prints_the_scores_of_each_loss(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    needs, losses, number = SCRIPTS[name]
    for package in needs:
        pytest.importorskip(package)
    scores = importlib.import_module(f"examples.start.{name}").main(steps=2)
    assert tuple(scores) == losses
    assert all(len(of) == number and all(0 <= score <= 1 for score in of) for of in scores.values())
    printed = capsys.readouterr().out
    for loss, of in scores.items():
        assert loss in printed
        assert f"{of[0]:.1%}" in printed


def test_lightning_logs_weights_and_terms() -> None:
    pytest.importorskip("lightning")
    log = importlib.import_module("examples.start.lightning_logging").main(steps=6)
    assert [int(row["step"]) for row in log] == [2, 4, 6]
    for name in ("DyCELoss", "DiceLoss", "loss/road", "DyCELoss/weight/road", "DyCELoss/weight/bicyclist"):
        assert math.isfinite(float(log[-1][f"criterion/{name}"]))


@pytest.fixture(scope="module")
def joined_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("start")
    spawn_two(worker.main, str(folder))
    found: dict[str, dict[str, torch.Tensor]] = torch.load(folder / "models.pt", weights_only=True)
    return found


def test_two_processes_take_the_steps_of_one(
    joined_models: dict[str, dict[str, torch.Tensor]], capsys: pytest.CaptureFixture[str]
) -> None:
    apart, joined = joined_models.values()
    alone = two_processes.train(two_processes.CRITERIA["the joined batch"], 1, 0, 1).state_dict()
    for key, value in alone.items():
        torch.testing.assert_close(joined[key], value, rtol=1e-4, atol=1e-5, msg=key)
    assert any((apart[key] - value).abs().max() > 1e-3 for key, value in alone.items())
    scores = two_processes.main(epochs=1)
    assert len(set(scores.values())) == 1, "one process is the joined batch"
    assert "1 process(es)" in capsys.readouterr().out


def test_notebook_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its code cells, one after the other as Jupyter runs them, with fewer steps; pictures go nowhere."""
    matplotlib.use("Agg")
    monkeypatch.setattr(pyplot, "show", lambda: pyplot.close("all"))
    cells = json.loads((START / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    short, replaced = re.subn(r"^STEPS = \d+", "STEPS = 2", code, flags=re.MULTILINE)
    assert replaced == 1
    names: dict[str, Any] = {"__name__": "tour"}
    exec(compile(short, "tour.ipynb", "exec"), names)
    assert list(names["iou"]) == ["CE", "DyCE", "weighted CE", "DyCE + Dice"]
    assert "IoU after 2 steps" in capsys.readouterr().out


def test_notebook_has_the_outputs_of_its_cells() -> None:
    text = (START / "tour.ipynb").read_text(encoding="utf-8")
    code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    shown = [output for cell in code for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in shown) >= 3
    assert not any(output["output_type"] == "error" for output in shown)
    assert len(text) < 300_000


def test_scripts_are_short_and_named_in_the_folders_readme() -> None:
    helpers = {"__init__", "data", "network", "table"}
    scripts = {file.stem: file for file in START.glob("*.py") if file.stem not in helpers}
    assert set(scripts) == set(SCRIPTS) | OTHERS
    readme = (START / "README.md").read_text(encoding="utf-8")
    for name, file in scripts.items():
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 60, name
        assert f"examples.start.{name}" in readme
    assert "tour.ipynb" in readme


def test_patches_have_their_class_in_the_middle() -> None:
    images, labels = data.patches(100, seed=0).tensors
    street_images, street_labels = data.streets(2, seed=0).tensors
    places = {
        street_images[n, :, y : y + 16, x : x + 16].numpy().tobytes(): int(street_labels[n, y + 8, x + 8])
        for n in range(2)
        for y in range(street_images.shape[2] - 15)
        for x in range(street_images.shape[3] - 15)
    }
    assert [places[image.numpy().tobytes()] for image in images] == labels.tolist()
    assert data.IGNORE_INDEX not in labels
