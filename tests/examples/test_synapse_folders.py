"""ACDC and CHAOS in synapse_ssl: what is split by patient, what is resampled, and what is refused."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.synapse_ssl.data.batches import Steps
from examples.synapse_ssl.data.config import DataConfig
from examples.synapse_ssl.data.task import load_task

REAL_ACDC = Path(os.environ.get("ACDC", "../shared/data/acdc"))
REAL_CHAOS = Path(os.environ.get("CHAOS", "../shared/data/chaos-mr"))


def test_folders_are_split_by_patient(acdc_folder, tmp_path):
    config = DataConfig(kind="acdc", folder=str(acdc_folder), patch=(8, 16, 16))
    task = load_task(config, tmp_path / "kept")
    groups = [
        {name.split("_")[0] for name in c.names} for c in (task.labelled, task.unlabelled, task.validation)
    ]
    assert sorted(len(group) for group in groups) == [1, 1, 1]
    assert len(set.union(*groups)) == 3
    assert len(task.labelled.names) == 2  # both phases
    assert task.test.names == ("patient004_frame01",)
    stored = np.load(acdc_folder / "val" / "patient004_frame01.npz")
    assert torch.equal(task.test.label(0), torch.from_numpy(stored["label"]).long())
    assert torch.equal(task.test.image(0)[0], torch.from_numpy(stored["image"]) / 255)
    assert Steps(task, config, 0, 0, 1)[0]["labelled"].image.shape == (
        2,
        1,
        8,
        16,
        16,
    )  # thin volumes are padded
    assert (
        load_task(replace(config, split_seed=1), tmp_path / "kept").validation.names != task.validation.names
    )


def test_folder_volumes_are_resampled_to_a_size(acdc_folder, tmp_path):
    config = DataConfig(kind="chaos", folder=str(acdc_folder), size=(4, 12, 10), patch=(4, 8, 8))
    test = load_task(config, tmp_path).test
    assert (test.image(0).shape, test.label(0).shape) == ((1, 4, 12, 10), (4, 12, 10))
    stored = np.load(acdc_folder / "val" / "patient004_frame01.npz")
    nearest = stored["label"][::2, :, :][:, np.arange(12) * 28 // 12][:, :, np.arange(10) * 22 // 10]
    assert np.array_equal(test.label(0).numpy(), nearest)
    assert 0 <= test.image(0).min() < test.image(0).max() <= 1


def test_a_folder_with_an_ignored_voxel_is_refused(acdc_folder, tmp_path):
    path = acdc_folder / "train" / "patient002_frame01.npz"
    with np.load(path) as file:
        image, label = file["image"], file["label"].copy()
    label[0, 0, 0] = 255
    np.savez_compressed(path, image=image, label=label)
    with pytest.raises(ValueError, match=r"patient002_frame01\.npz has voxels with the label 255"):
        load_task(DataConfig(kind="acdc", folder=str(acdc_folder)), tmp_path)


def test_a_folder_with_one_patient_is_refused(acdc_folder, tmp_path):
    for path in (acdc_folder / "train").glob("patient00[23]*"):
        path.unlink()
    with pytest.raises(ValueError, match="has 1 patient: expected two or more"):
        load_task(DataConfig(kind="acdc", folder=str(acdc_folder)), tmp_path)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def _without_label(path: Path) -> None:
    np.savez_compressed(path, image=np.zeros((4, 8, 8), np.uint8))


def _fifth_class(path: Path) -> None:
    np.savez_compressed(path, image=np.zeros((4, 8, 8), np.uint8), label=np.full((4, 8, 8), 4, np.uint8))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (_truncate, r"patient002_frame12\.npz cannot be read as \.npz, it may be cut short"),
        (_without_label, r"patient002_frame12\.npz has no array.*label"),
        (_fifth_class, r"patient002_frame12\.npz holds labels \[4\]: expected 0 to 3"),
    ],
)
def test_a_broken_volume_is_named(acdc_folder, tmp_path, fault, message):
    fault(acdc_folder / "train" / "patient002_frame12.npz")
    with pytest.raises(ValueError, match=message):
        load_task(DataConfig(kind="acdc", folder=str(acdc_folder)), tmp_path)


@pytest.mark.skipif(not REAL_ACDC.is_dir(), reason=f"no ACDC in {REAL_ACDC}")
def test_real_acdc_budgets_are_nested(tmp_path):
    config = DataConfig(kind="acdc", folder=str(REAL_ACDC), patch=(8, 96, 96))
    tasks = [load_task(replace(config, budget=budget), tmp_path) for budget in (0.05, 0.1, 0.2)]
    patients = [{name.split("_")[0] for name in task.labelled.names} for task in tasks]
    assert [len(group) for group in patients] == [3, 6, 12]
    assert patients[0] < patients[1] < patients[2]
    assert all(len(t.labelled.names) + len(t.unlabelled.names) == 120 for t in tasks)
    assert [len(tasks[0].validation.names), len(tasks[0].test.names)] == [20, 20]
    item = Steps(tasks[0], config, 0, 0, 1)[0]["labelled"]
    assert item.image.shape == (2, 1, 8, 96, 96)
    assert set(item.label.unique().tolist()) <= {0, 1, 2, 3}


@pytest.mark.skipif(not REAL_CHAOS.is_dir(), reason=f"no CHAOS in {REAL_CHAOS}")
def test_real_chaos_has_four_organs(tmp_path):
    task = load_task(DataConfig(kind="chaos", folder=str(REAL_CHAOS), patch=(32, 96, 96)), tmp_path)
    assert task.classes == ("background", "liver", "right_kidney", "left_kidney", "spleen")
    sizes = [len(c.names) for c in (task.labelled, task.unlabelled, task.validation, task.test)]
    assert sizes == [2, 10, 2, 2]
    assert task.test.label(0).unique().tolist() == [0, 1, 2, 3, 4]
