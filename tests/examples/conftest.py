"""Tiny data sets in the layouts that the loaders read, written by the tests themselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.common.scenes.toy import write_street_folder

CLASSES = ("sky", "road", "pole")


def write_pair(folder: Path, stem: str, size: tuple[int, int] = (24, 32), seed: int = 0) -> None:
    """An image whose colour gives its class away, and its label with a border of 255."""
    label = np.zeros(size, np.uint8)
    label[size[0] // 2 :] = 1
    column = 2 + np.random.default_rng(seed).integers(size[1] - 8)
    label[4:-4, column : column + 3] = 2
    colours = np.array([[120, 160, 250], [90, 90, 90], [250, 30, 30]], np.uint8)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    Image.fromarray(colours[label]).save(folder / "images" / f"{stem}.jpg", quality=95)
    label[:, :2] = 255
    Image.fromarray(label).save(folder / "labels" / f"{stem}.png")


@pytest.fixture
def camvid_folder(tmp_path: Path) -> Path:
    """Four training images, two of val, and the lists train_alt (three) and val_alt (one)."""
    folder = tmp_path / "tiny-camvid"
    for i in range(4):
        write_pair(folder / "train", f"a{i}", seed=i)
    for i in range(2):
        write_pair(folder / "val", f"b{i}", seed=9 + i)
    (folder / "splits").mkdir()
    (folder / "splits" / "train_alt.txt").write_text("a0\na1\na2\n")
    (folder / "splits" / "val_alt.txt").write_text("a3\n")
    (folder / "dataset.json").write_text(json.dumps({"classes": CLASSES, "ignore_index": 255}))
    return folder


@pytest.fixture
def acdc_folder(tmp_path: Path) -> Path:
    """Three patients with two volumes each in train, one with one in val; sizes differ between patients."""
    folder = tmp_path / "tiny-acdc"
    random = np.random.default_rng(0)
    for split, patients in {"train": (1, 2, 3), "val": (4,)}.items():
        (folder / split).mkdir(parents=True)
        for patient in patients:
            for frame in (1, 12) if split == "train" else (1,):
                shape = (4 + patient, 20 + 2 * patient, 26 - patient)
                np.savez_compressed(
                    folder / split / f"patient{patient:03d}_frame{frame:02d}.npz",
                    image=random.integers(0, 256, shape, dtype=np.uint8),
                    label=random.integers(0, 4, shape, dtype=np.uint8),
                )
    classes = ["background", "right_ventricle", "myocardium", "left_ventricle"]
    (folder / "dataset.json").write_text(json.dumps({"classes": classes}))
    return folder


@pytest.fixture
def street_folder(tmp_path: Path) -> Path:
    """Rendered streets in CamVid's layout: four of train_alt, two of val_alt."""
    return write_street_folder(tmp_path / "street-camvid", size=(24, 32), train=4, test=2)


@pytest.fixture(scope="session")
def uda_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`target`, a folder in CamVid's layout, and `kept`, where the rendered source of examples/uda_gbw stays."""
    folder = tmp_path_factory.mktemp("uda")
    write_street_folder(folder / "target", size=(32, 48), train=4, test=2)
    return folder
