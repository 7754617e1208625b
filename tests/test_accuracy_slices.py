"""Slices of volumes: a square about the middle, smaller, held out by patient, scored by the structures' Dice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="the plots need the extra [plot]")

from benchmarks.accuracy import __main__ as command_line
from benchmarks.accuracy.collect import read_results
from benchmarks.accuracy.data import load_data
from benchmarks.accuracy.grid import load_grid
from benchmarks.accuracy.search import main_score
from benchmarks.accuracy.slices import Slices, held_out_patients
from examples.common.acdc import AcdcVolumes
from tests.examples.conftest import acdc_folder  # noqa: F401 (a fixture)
from tests.test_accuracy_benchmark import TINY


def test_a_square_is_cut_and_padded_about_the_middle(acdc_folder: Path) -> None:  # noqa: F811
    volumes = AcdcVolumes(acdc_folder, "val")  # 28 rows, 22 columns
    (volume,) = volumes.volumes
    found = Slices(volumes, side=24, scale=1)
    assert torch.equal(found.images[:, 1, :, 1:23], torch.from_numpy(volume.image[:, 2:26]))
    assert torch.equal(found.labels[:, :, 1:23], torch.from_numpy(volume.label[:, 2:26]))
    assert (found.labels[:, :, [0, 23]] == 255).all()
    assert (found.images[..., [0, 23]] == 0).all()


def test_smaller_slices_are_means_and_keep_labels(acdc_folder: Path) -> None:  # noqa: F811
    volumes = AcdcVolumes(acdc_folder, "val")
    whole, half = Slices(volumes, side=24, scale=1), Slices(volumes, side=24, scale=2)
    blocks = whole.images.view(-1, 3, 12, 2, 12, 2).double().mean((3, 5))
    assert (half.images.double() - blocks).abs().max() <= 0.5
    assert torch.equal(half.labels, whole.labels[:, ::2, ::2])


def test_no_patient_is_on_both_sides(acdc_folder: Path) -> None:  # noqa: F811
    config = {"kind": "acdc", "train": "train", "tests": ["val"], "side": 24, "scale": 1, "held_out": 3}
    data = load_data(config, acdc_folder, acdc_folder)
    out = [volume for volume in AcdcVolumes(acdc_folder, "train").volumes if volume.patient == "patient003"]
    labels = np.concatenate([volume.label for volume in out])
    assert len(data.tests["held out"]) == len(labels) == 14
    assert len(data.train) == 2 * (5 + 6)
    assert data.structures == [1, 2, 3]
    of = ["a", "b", "b", "c", "d"]
    assert held_out_patients(of, 2).tolist() == [False, True, True, False, True]


def test_a_study_of_slices_is_judged_by_dice(tmp_path: Path, acdc_folder: Path) -> None:  # noqa: F811
    path, out = tmp_path / "hearts.toml", tmp_path / "out"
    data = 'kind = "acdc"\nside = 24\nscale = 1'
    losses = 'losses_of = { grid = "study_camvid", labels = ["CE", "DyCE"] }\n'
    search = "\n[search]\nmax_lr = [1e-3, 2e-3]\nseed = 7\nheld_out = 3\n"
    path.write_text(losses + TINY.split("[[loss]]")[0].replace('kind = "camvid"', data) + search)
    assert load_grid(path).origin is None  # rates of CamVid say nothing of hearts
    shared = [str(path), "--data", str(acdc_folder), "--runs", str(tmp_path / "runs")]
    assert command_line.main(["run", *shared]) == 0
    assert command_line.main(["report", *shared, "--out", str(out)]) == 0
    results = read_results(out / "hearts.json")
    (score, *_) = results.columns("DyCE", "val")["mean Dice"]
    entry = next(results.of("DyCE")).scores["val"]
    assert score == pytest.approx(main_score(entry))
    dice = [2 * iou / (1 + iou) for iou in entry["iou"][1:] if iou is not None]
    assert score == pytest.approx(100 * sum(dice) / len(dice), abs=2e-3)
    page = (out / "README.md").read_text()
    assert "mean Dice of all classes but the background" in page
    assert "recall, rarest 3" in page
    assert {rate for scores in results.rate_scores.values() for rate in scores} == {"0.001", "0.002"}
