"""The loaders of CamVid-layout and ACDC-layout folders: what they give, and what they say about broken folders."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from examples.common.acdc import AcdcVolumes
from examples.common.camvid import CamVid
from tests.examples.conftest import CLASSES, write_pair

REAL_CAMVID = Path(os.environ.get("CAMVID_SMALL", "../shared/data/camvid-small"))
REAL_ACDC = Path(os.environ.get("ACDC", "../shared/data/acdc"))


def test_camvid_items_are_images_in_unit_range_with_their_labels(camvid_folder):
    data = CamVid(camvid_folder, "train")
    image, label = data[0]
    assert (len(data), data.classes, data.num_classes, data.ignore_index) == (4, CLASSES, 3, 255)
    assert image.shape == (3, 24, 32)
    assert image.dtype == torch.float32
    assert 0 <= image.min() < 0.5 < image.max() <= 1
    assert label.shape == (24, 32)
    assert label.dtype == torch.int64
    stored = np.asarray(Image.open(camvid_folder / "train" / "labels" / "a0.png"))
    assert label.tolist() == stored.tolist()
    assert image[0, 6, 10:20].max() > image[0, -1, -1]  # the channels are RGB: the pole is red


def test_camvid_split_lists_part_the_train_folder(camvid_folder):
    train, val = CamVid(camvid_folder, "train_alt"), CamVid(camvid_folder, "val_alt")
    assert (train.stems, val.stems) == (["a0", "a1", "a2"], ["a3"])
    assert len(CamVid(camvid_folder, "val")) == 2


def _remove_folder(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def _wrong_label(folder: Path) -> None:
    Image.fromarray(np.full((24, 32), 7, np.uint8)).save(folder / "train" / "labels" / "a1.png")


def _wrong_size(folder: Path) -> None:
    Image.fromarray(np.zeros((12, 16), np.uint8)).save(folder / "train" / "labels" / "a1.png")


def _colour_label(folder: Path) -> None:
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(folder / "train" / "labels" / "a1.png")


CAMVID_FAULTS = {
    "no folder": (_remove_folder, FileNotFoundError, "dataset folder not found.*tiny-camvid.*expected"),
    "no dataset.json": (lambda f: (f / "dataset.json").unlink(), FileNotFoundError, "names the classes"),
    "dataset.json is no JSON": (lambda f: (f / "dataset.json").write_text("{"), ValueError, "JSON object"),
    "dataset.json lacks a key": (
        lambda f: (f / "dataset.json").write_text('{"classes": []}'),
        ValueError,
        "ignore_index",
    ),
    "no image folder": (
        lambda f: (f / "train" / "images").rename(f / "gone"),
        FileNotFoundError,
        "train/images",
    ),
    "no image": (
        lambda f: [p.unlink() for p in (f / "train" / "images").glob("*.jpg")],
        FileNotFoundError,
        "no .jpg image",
    ),
    "no label": (
        lambda f: (f / "train" / "labels" / "a1.png").unlink(),
        FileNotFoundError,
        "a1.png not found.*same stem",
    ),
    "broken image": (
        lambda f: (f / "train" / "images" / "a1.jpg").write_bytes(b"\xff\xd8 no more"),
        ValueError,
        "a1.jpg or its label cannot be decoded",
    ),
    "unknown class": (_wrong_label, ValueError, r"a1.png holds labels \[7\]: expected 0 to 2 or 255"),
    "another size": (_wrong_size, ValueError, "16x12 and its image 32x24"),
    "a colour label": (_colour_label, ValueError, "one channel.*RGB"),
    "images of two sizes": (
        lambda f: write_pair(f / "train", "a9", size=(12, 16)),
        ValueError,
        r"one size.*\(12, 16\), \(24, 32\)",
    ),
}


@pytest.mark.parametrize("fault", CAMVID_FAULTS)
def test_camvid_says_what_is_wrong_with_a_folder(camvid_folder, fault):
    damage, error, message = CAMVID_FAULTS[fault]
    damage(camvid_folder)
    with pytest.raises(error, match=message):
        CamVid(camvid_folder, "train")


def test_camvid_names_the_split_lists_there_are(camvid_folder):
    with pytest.raises(FileNotFoundError, match="splits are train, val, train_alt, val_alt"):
        CamVid(camvid_folder, "tset")
    (camvid_folder / "splits" / "val_alt.txt").write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        CamVid(camvid_folder, "val_alt")


def test_acdc_volumes_belong_to_patients(acdc_folder):
    data = AcdcVolumes(acdc_folder, "train")
    image, label = data[1]
    assert len(data) == 6
    assert data.patients == ("patient001", "patient002", "patient003")
    assert (data.num_classes, data.classes[3]) == (4, "left_ventricle")
    assert image.shape == (1, 5, 22, 25)
    assert image.dtype == torch.float32
    assert 0 <= image.min() < image.max() <= 1
    assert label.shape == (5, 22, 25)
    assert label.dtype == torch.int64
    one = AcdcVolumes(acdc_folder, "train", patients=["patient002"])
    assert [volume.name for volume in one.volumes] == ["patient002_frame01", "patient002_frame12"]


def _truncate(folder: Path) -> None:
    path = folder / "train" / "patient002_frame12.npz"
    path.write_bytes(path.read_bytes()[:200])


def _save(folder: Path, **arrays: np.ndarray) -> None:
    np.savez(folder / "train" / "patient002_frame12.npz", **arrays)


VOLUME = np.zeros((2, 4, 4), np.uint8)
ACDC_FAULTS = {
    "no folder": (_remove_folder, FileNotFoundError, "dataset folder not found.*tiny-acdc"),
    "no dataset.json": (lambda f: (f / "dataset.json").unlink(), FileNotFoundError, "names the classes"),
    "dataset.json is a list": (lambda f: (f / "dataset.json").write_text("[]"), ValueError, "JSON object"),
    "no split": (lambda f: (f / "train").rename(f / "gone"), FileNotFoundError, "volume folder not found"),
    "no volume": (
        lambda f: [p.unlink() for p in (f / "train").glob("*.npz")],
        FileNotFoundError,
        "no .npz volume",
    ),
    "cut short": (_truncate, ValueError, "frame12.npz cannot be read as .npz, it may be cut short"),
    "no label": (lambda f: _save(f, image=VOLUME), ValueError, "no array.*label"),
    "other shapes": (lambda f: _save(f, image=VOLUME, label=VOLUME[:1]), ValueError, "same shape"),
    "a plane": (lambda f: _save(f, image=VOLUME[0], label=VOLUME[0]), ValueError, r"\(D, H, W\) uint8"),
    "floats": (lambda f: _save(f, image=VOLUME / 2, label=VOLUME), ValueError, "image must be.*float64"),
    "unknown class": (lambda f: _save(f, image=VOLUME, label=VOLUME + 4), ValueError, r"labels \[4\]"),
}


@pytest.mark.parametrize("fault", ACDC_FAULTS)
def test_acdc_says_what_is_wrong_with_a_folder(acdc_folder, fault):
    damage, error, message = ACDC_FAULTS[fault]
    damage(acdc_folder)
    with pytest.raises(error, match=message):
        AcdcVolumes(acdc_folder, "train")


def test_acdc_names_a_patient_that_is_not_there(acdc_folder):
    with pytest.raises(FileNotFoundError, match="patient009"):
        AcdcVolumes(acdc_folder, "train", patients=["patient009"])


@pytest.mark.skipif(not REAL_CAMVID.is_dir(), reason=f"no CamVid folder at {REAL_CAMVID}: set CAMVID_SMALL")
def test_real_camvid_is_as_its_description_says():
    data = CamVid(REAL_CAMVID, "val")
    described = json.loads((REAL_CAMVID / "dataset.json").read_text())["splits"]["val"]
    labels = torch.stack([data[i][1] for i in range(len(data))])
    assert len(data) == described["images"]
    kept = labels[labels != data.ignore_index]
    shares = torch.stack([(kept == c).double().mean() for c in range(data.num_classes)])
    torch.testing.assert_close(
        shares, torch.tensor(list(described["pixel_fraction"].values())).double(), atol=2e-6, rtol=0
    )


@pytest.mark.skipif(not REAL_ACDC.is_dir(), reason=f"no ACDC folder at {REAL_ACDC}: set ACDC")
def test_real_acdc_has_two_volumes_a_patient():
    data = AcdcVolumes(REAL_ACDC, "val")
    assert (
        len(data)
        == 2 * len(data.patients)
        == json.loads((REAL_ACDC / "dataset.json").read_text())["splits"]["val"]["volumes"]
    )
