"""BTCV's loader on files that the tests write: what it gives, and what it says about broken ones."""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from examples.synapse_ssl.data import btcv
from examples.synapse_ssl.data.batches import Steps
from examples.synapse_ssl.data.config import DataConfig
from examples.synapse_ssl.data.splits import read_list
from examples.synapse_ssl.data.task import Task, load_task

nibabel = pytest.importorskip("nibabel", reason="nibabel reads BTCV's files")

SCAN = (10, 16, 12)  # depth, height, width
LISTS = {
    name: read_list(btcv.SPLITS / f"{name}.txt") for name in ("train", "validation", "test", "labelled_0.2")
}
PARTS = tuple(name for split in ("train", "validation", "test") for name in LISTS[split])


def _write(path: Path, volume: np.ndarray) -> None:
    """A volume (D, H, W) as NIfTI, whose axes run the other way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([0.8, 0.8, 3.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(volume.transpose(2, 1, 0), affine), path)


def scan(name: str) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(int(name))
    image = random.integers(-1000, 1500, SCAN).astype(np.int16)
    return image, random.integers(0, 14, SCAN).astype(np.uint8)


def _files(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / "imagesTr" / f"img{name}.nii.gz", folder / "labelsTr" / f"label{name}.nii.gz"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("btcv")
    for name in PARTS:
        for path, volume in zip(_files(folder, name), scan(name), strict=True):
            _write(path, volume)
    return folder


@pytest.fixture
def btcv_folder(written, tmp_path) -> Path:
    """A copy that a test may break."""
    folder = tmp_path / "scans"
    for source in written.rglob("*.nii.gz"):
        copy = folder / source.relative_to(written)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(source.read_bytes())
    return folder


def _config(folder: Path) -> DataConfig:
    return DataConfig(kind="btcv", folder=str(folder), size=(8, 8, 8), patch=(4, 8, 8))


def test_the_published_lists_part_the_thirty_scans():
    assert [len(LISTS[name]) for name in LISTS] == [20, 4, 6, 4]
    assert sorted(PARTS) == [f"{i:04d}" for i in (*range(1, 11), *range(21, 41))]
    assert set(LISTS["labelled_0.2"]) < set(LISTS["train"])


def test_a_fifth_is_the_published_list_and_other_budgets_nest_about_it(written, tmp_path):
    config = _config(written)
    lists = {
        budget: set(load_task(replace(config, budget=budget, split_seed=4), tmp_path).labelled.names)
        for budget in (0.1, 0.2, 0.4)
    }
    assert lists[0.2] == set(LISTS["labelled_0.2"])
    assert lists[0.1] < lists[0.2] < lists[0.4]
    assert [len(names) for names in lists.values()] == [2, 4, 8]


def test_resize_gives_trilinear_images_in_the_window_and_nearest_labels(written, tmp_path):
    task = load_task(_config(written), tmp_path)
    assert task.classes == btcv.CLASSES
    assert len(task.classes) == 14
    assert (task.validation.names, task.test.names) == (LISTS["validation"], LISTS["test"])
    assert sorted(task.labelled.names + task.unlabelled.names) == sorted(LISTS["train"])
    image, label = scan(task.test.names[2])
    resized = F.interpolate(torch.from_numpy(image).float()[None, None], (8, 8, 8), mode="trilinear")[0]
    clipped = resized.clip(-75, 275)
    expected = (clipped - clipped.min()) / (clipped.max() - clipped.min())
    assert torch.allclose(task.test.image(2), expected)
    places = np.ix_(np.arange(8) * 10 // 8, np.arange(8) * 2, np.arange(8) * 12 // 8)
    assert np.array_equal(task.test.label(2).numpy(), label[places])
    assert task.test.label(2).dtype == torch.int64
    assert Steps(task, _config(written), 0, 0, 1)[0]["unlabelled"].image.shape == (2, 1, 4, 8, 8)


def test_half_clips_first_and_keeps_the_depth(written, tmp_path):
    config = DataConfig(kind="btcv", folder=str(written), preprocessing="half", patch=(8, 8, 6))
    task = load_task(config, tmp_path)
    image, label = scan("0008")
    clipped = torch.from_numpy(image).float().clip(-75, 275)
    clipped = (clipped - clipped.min()) / (clipped.max() - clipped.min())
    # Halving with trilinear weights is the mean of 2 x 2 voxels.
    assert torch.allclose(task.test.image(0)[0], F.avg_pool2d(clipped, 2), atol=1e-6)
    assert np.array_equal(task.test.label(0).numpy(), label[:, ::2, ::2])


def test_the_official_layout_gives_the_same_volumes(btcv_folder, written, tmp_path):
    official = tmp_path / "official" / "RawData" / "Training"
    official.mkdir(parents=True)
    (btcv_folder / "imagesTr").rename(official / "img")
    (btcv_folder / "labelsTr").rename(official / "label")
    one = load_task(_config(tmp_path / "official"), tmp_path / "one").labelled
    other = load_task(_config(written), tmp_path / "other").labelled
    assert torch.equal(one.image(1), other.image(1))
    assert torch.equal(one.label(1), other.label(1))


def test_prepared_scans_are_kept_until_a_file_or_a_choice_changes(btcv_folder, tmp_path, monkeypatch):
    config, read = _config(btcv_folder), []
    original = btcv.read_nifti

    def counted(path: Path) -> np.ndarray:
        read.append(path.name)
        return original(path)

    monkeypatch.setattr(btcv, "read_nifti", counted)
    first = load_task(config, tmp_path / "kept").test.image(0)
    assert len(read) == 60
    read.clear()
    assert torch.equal(load_task(config, tmp_path / "kept").test.image(0), first)
    assert not read
    image_path, _ = _files(btcv_folder, "0008")
    _write(image_path, -scan("0008")[0])
    assert not torch.equal(load_task(config, tmp_path / "kept").test.image(0), first)
    assert sorted(read) == ["img0008.nii.gz", "label0008.nii.gz"]
    read.clear()
    os.utime(image_path, ns=(0, 0))  # a file of the same size may have other content
    load_task(config, tmp_path / "kept")
    assert len(read) == 2
    read.clear()
    assert load_task(replace(config, size=(8, 8, 10)), tmp_path / "kept").test.image(0).shape == (1, 8, 8, 10)
    assert len(read) == 60


def test_a_damaged_prepared_scan_is_named(written, tmp_path):
    kept = tmp_path / "kept"
    load_task(_config(written), kept)
    (path,) = kept.rglob("0002-*.npz")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"0002-.*npz cannot be read, delete it to have it prepared again"):
        load_task(_config(written), kept)
    path.unlink()
    assert load_task(_config(written), kept).classes == btcv.CLASSES


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def _shorten(path: Path) -> None:
    """Whole as gzip, but without its last voxels."""
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-500]))


def _wrong_label(path: Path) -> None:
    label = scan("0002")[1]
    label[3, 2, 1] = 14
    _write(path, label)


FAULTS: dict[str, tuple[Callable[[Path, Path], object], type[Exception], str]] = {
    "label missing": (lambda _, label: label.unlink(), FileNotFoundError, "label0002.nii.gz not found"),
    "image missing": (lambda image, _: image.unlink(), FileNotFoundError, "img0002.nii.gz not found"),
    "unknown label": (
        lambda _, label: _wrong_label(label),
        ValueError,
        r"label0002.nii.gz holds the labels \[14\]: expected 0 to 13",
    ),
    "fractional label": (
        lambda _, label: _write(label, np.full(SCAN, 0.5, np.float32)),
        ValueError,
        r"label0002.nii.gz holds the labels \[0.5\]",
    ),
    "shapes differ": (
        lambda _, label: _write(label, np.zeros((10, 16, 11), np.uint8)),
        ValueError,
        r"\(10, 16, 12\) and .*label0002.nii.gz \(10, 16, 11\).*same shape",
    ),
    "four axes": (
        lambda image, _: nibabel.save(
            nibabel.Nifti1Image(np.zeros((3, 3, 3, 2), np.int16), np.eye(4)), image
        ),
        ValueError,
        r"img0002.nii.gz must hold a volume of three axes, got shape \(3, 3, 3, 2\)",
    ),
    "truncated gzip": (
        lambda image, _: _truncate(image),
        ValueError,
        "img0002.nii.gz cannot be read as NIfTI",
    ),
    "voxels missing": (
        lambda image, _: _shorten(image),
        ValueError,
        "img0002.nii.gz cannot be read as NIfTI",
    ),
    "no NIfTI": (
        lambda image, _: image.write_bytes(gzip.compress(b"text" * 200)),
        ValueError,
        "img0002.nii.gz cannot be read as NIfTI",
    ),
    "no gzip": (
        lambda _, label: label.write_bytes(b"text" * 200),
        ValueError,
        "label0002.nii.gz cannot be read as NIfTI",
    ),
    "no contrast": (
        lambda image, _: _write(image, np.full(SCAN, -1000, np.int16)),
        ValueError,
        "img0002.nii.gz has no contrast .* from -75.0 to -75.0",
    ),
    "not a number": (
        lambda image, _: _write(image, np.full(SCAN, np.nan, np.float32)),
        ValueError,
        "img0002.nii.gz has no contrast .* from nan",
    ),
}


@pytest.mark.parametrize(("fault", "error", "message"), FAULTS.values(), ids=FAULTS)
def test_a_broken_scan_is_named_and_not_kept(btcv_folder, tmp_path, fault, error, message):
    fault(*_files(btcv_folder, "0002"))
    with pytest.raises(error, match=message):
        load_task(_config(btcv_folder), tmp_path / "kept")
    assert not [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]  # 0002 is the first scan


def test_a_folder_that_is_missing_or_of_another_layout_is_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone not found: expected RawData/Training"):
        load_task(_config(tmp_path / "gone"), tmp_path / "kept")
    with pytest.raises(FileNotFoundError, match="has neither layout: expected RawData/Training"):
        load_task(_config(tmp_path), tmp_path / "kept")


def test_a_scan_smaller_than_the_patch_is_refused(btcv_folder, tmp_path):
    config = DataConfig(kind="btcv", folder=str(btcv_folder), preprocessing="half", patch=(8, 8, 6))
    for path, volume in zip(_files(btcv_folder, "0031"), scan("0031"), strict=True):
        _write(path, volume[:7])
    with pytest.raises(
        ValueError, match=r"scan 0031, prepared, is \(7, 8, 6\).*smaller than the patch.*lower data.patch"
    ):
        load_task(config, tmp_path / "kept")
    for path, volume in zip(_files(btcv_folder, "0031"), scan("0031"), strict=True):
        _write(path, volume)
    for path, volume in zip(_files(btcv_folder, "0008"), scan("0008"), strict=True):
        _write(path, volume[:7])
    task: Task = load_task(config, tmp_path / "kept")  # evaluation pads test scans
    assert task.test.image(0).shape == (1, 7, 8, 6)


def test_nibabel_is_asked_for_where_it_is_missing(written, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(ModuleNotFoundError, match=r"need nibabel: pip install .*\[examples\]"):
        load_task(_config(written), tmp_path)
