"""The accuracy benchmark on a folder of two classes: one logit, and the scores of the second class."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("matplotlib", reason="the plots need the extra [plot]")

from benchmarks.accuracy import __main__ as command_line
from benchmarks.accuracy import plots
from benchmarks.accuracy.collect import collect, positive_scores, read_results
from benchmarks.accuracy.data import load_data
from benchmarks.accuracy.grid import Grid, load_grid
from benchmarks.accuracy.losses import build_loss
from benchmarks.accuracy.predictions import _judged, predictions_figure
from benchmarks.accuracy.report import write_report
from benchmarks.accuracy.run import execute
from benchmarks.accuracy.table import summary_table
from classbalance_losses import SumLoss
from tests.examples.conftest import camvid_folder  # noqa: F401 (a fixture)

STUDY = load_grid("study_cracks")
REAL_CRACKS = Path(os.environ.get("CRACKS", "../shared/data/cracks"))

TINY = """
title = "Tiny"
seeds = [0, 1]

[data]
kind = "camvid"
name = "tiny"
train = "train"
tests = ["val"]

[model]
encoder = "unet"

[training]
iterations = 4
batch_size = 2
crop = 16
log_every = 1
eval_every = 2

[[loss]]
label = "BCE"
name = "WeightedCrossEntropyLoss"

[[loss]]
label = "GBW"
name = "GBWLoss"

[[loss]]
label = "DyCE + Dice"
name = "SumLoss"
kwargs = { terms = [{ name = "DyCELoss", kwargs = { omega = 0.25 } }, { name = "DiceLoss" }] }
"""


@pytest.fixture
def cracks(camvid_folder: Path) -> Path:  # noqa: F811
    """The poles of the tiny CamVid as cracks in all the rest."""
    for path in camvid_folder.glob("*/labels/*.png"):
        label = np.asarray(Image.open(path))
        Image.fromarray(np.where(label == 255, 255, label == 2).astype(np.uint8)).save(path)
    description = {"classes": ["asphalt", "crack"], "ignore_index": 255}
    (camvid_folder / "dataset.json").write_text(json.dumps(description))
    return camvid_folder


@pytest.fixture
def tiny(tmp_path: Path, cracks: Path) -> Grid:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return command_line.for_folder(load_grid(path), cracks)


@pytest.fixture
def finished(tiny: Grid, tmp_path: Path, cracks: Path) -> Path:
    for _, config in tiny.runs():
        execute(config, tmp_path / "runs", cracks)
    return tmp_path / "runs"


def test_two_classes_are_one_logit(tiny, cracks, tmp_path):
    data = load_data(tiny.data, cracks, tmp_path)
    assert (data.task, data.logits) == ("binary", 1)
    weighted = build_loss({"name": "WeightedCrossEntropyLoss", "kwargs": {"weight": "pixel_frequency"}}, data)
    assert weighted.task == "binary"
    assert weighted.weight[1] > weighted.weight[0]
    total = build_loss(tiny.losses[2], data)
    assert isinstance(total, SumLoss)
    assert total.weights == (1.0, 1.0)
    assert [(type(loss).__name__, loss.task) for loss in total.losses] == [
        ("DyCELoss", "binary"), ("DiceLoss", "binary")
    ]  # fmt: skip
    assert total.losses[0].omega == 0.25


@pytest.mark.parametrize("spec", STUDY.losses, ids=STUDY.labels)
def test_every_contender_leaves_out_what_is_ignored(spec, tiny, cracks, tmp_path):
    if "." in spec["name"]:
        pytest.importorskip(spec["name"].split(".")[0])
    data = load_data(tiny.data, cracks, tmp_path)
    loss = build_loss(spec, data)
    torch.manual_seed(0)
    target = (torch.rand(2, 8, 8) < 0.3).long()
    target[:, :3] = data.ignore_index
    values = []
    for left_out in (0.0, 7.0):
        logits = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        logits[:, :, :3] = left_out
        value = loss(logits.requires_grad_(), target)
        (gradient,) = torch.autograd.grad(value, logits)
        assert (gradient[:, :, :3] == 0).all()
        assert (gradient[:, :, 3:] != 0).any()
        values.append(value.item())
    assert values[0] == values[1] > 0


def test_the_page_has_the_scores_of_the_second_class(tiny, finished, tmp_path, cracks):
    out = tmp_path / "out"
    results = read_results(collect(tiny, finished, out))
    assert results.is_binary
    header, _, first, *_ = summary_table(results).splitlines()
    assert [cell.strip() for cell in header.split("|")[1:-1]] == [
        "loss", "seeds", "IoU, val", "F1, val", "precision, val", "recall, val"
    ]  # fmt: skip
    assert first.startswith("| BCE ")
    arguments = ["--data", str(cracks), "--runs", str(finished), "--out", str(out)]
    assert command_line.main(["report", str(tmp_path / "tiny.toml"), *arguments]) == 0
    assert sorted(path.name for path in (out / "plots").iterdir()) == [
        "learning_curves.png",
        "tiny_class_weights.png",
        "tiny_precision_against_recall.png",
        "tiny_predictions.png",
        "tiny_reliability.png",
    ]
    page = write_report(out).read_text()
    assert "Scores are those of crack (" in page
    assert "crops of 16×16" in page
    assert "tiny_predictions.png" in page


def test_published_pictures_hold_no_image_and_no_label(tiny, finished, cracks):
    def titles(*, shows_data: bool) -> list[str]:
        figure = predictions_figure(tiny, finished, cracks, images=1, shows_data=shows_data)
        return [axes.get_title() for axes in figure.axes]

    assert titles(shows_data=False) == ["BCE", "GBW", "DyCE + Dice"]
    assert titles(shows_data=True)[:2] == ["image", "label"]


def test_pictures_tell_false_alarms_from_what_is_found(tiny, cracks, tmp_path):
    data = load_data(tiny.data, cracks, tmp_path)
    predicted, label = torch.tensor([[0, 1, 1, 1, 0]]), torch.tensor([[1, 1, 0, 255, 255]])
    assert _judged(predicted, label, data).tolist() == [[0, 1, 2, 255, 0]]


def test_a_loss_that_finds_nothing_has_no_precision(tiny, finished, tmp_path):
    entry = {"iou": [0.9, 0.0], "precision": [0.9, None], "recall": [1.0, 0.0]}
    scores = positive_scores(entry)
    assert (scores["IoU"], scores["F1"], scores["recall"]) == (0, 0, 0)
    results = read_results(collect(tiny, finished, tmp_path))
    bare = replace(results, runs=tuple(replace(run, scores={"val": entry}) for run in results.runs))
    assert summary_table(bare).splitlines()[2].split("|")[5].strip() == "–"
    plots.precision_against_recall(bare)


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    scores = positive_scores({"iou": [0.5, 3 / 7], "precision": [0.5, 0.5], "recall": [0.5, 0.75]})
    assert scores["F1"] == pytest.approx(2 / (1 / 50 + 1 / 75))


def test_compare_takes_the_grid_that_fits_the_folder(cracks, monkeypatch, tmp_path):
    taken = []
    monkeypatch.setattr(command_line, "_run_and_show", lambda name, _: taken.append(name))
    assert command_line.main(["compare", "--data", str(cracks)]) == 0
    (cracks / "dataset.json").write_text(json.dumps({"classes": ["a", "b", "c"], "ignore_index": 255}))
    assert command_line.main(["compare", "--data", str(cracks)]) == 0
    assert taken == ["compare_binary", "compare"]


def test_the_real_cracks_are_one_logit(tmp_path):
    if not REAL_CRACKS.is_dir():
        pytest.skip("cracks is not in ../shared/data")
    data = load_data(load_grid("compare_binary").data, REAL_CRACKS, tmp_path)
    assert (data.task, data.classes, len(data.train), len(data.tests["val"])) == (
        "binary", ("asphalt", "crack"), 70, 24
    )  # fmt: skip
    assert float(data.pixel_counts[1] / data.pixel_counts.sum()) == pytest.approx(0.015028, abs=1e-6)
