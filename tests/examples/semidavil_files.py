"""Small files in the layouts and encodings of GTA5, SYNTHIA and Cityscapes, written by the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from png16 import write_png16

from examples.common.scenes.labels import CITYSCAPES_IDS, COLOURS, SYNTHIA_IDS

SIZE = (12, 16)
CITYSCAPES_ID = np.array([*CITYSCAPES_IDS, 0])  # train id -> label id; the last is "unlabelled"
SYNTHIA_ID = np.array([*SYNTHIA_IDS, 0])


def train_ids(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Train ids in blocks, 19 where nothing is labelled; the first column is unlabelled."""
    label = (
        np.random.default_rng(seed).integers(0, 19, (size[0] // 4, size[1] // 4)).repeat(4, 0).repeat(4, 1)
    )
    label[:, 0] = 19
    return label


def expected(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    label = train_ids(seed, size)
    return np.where(label == 19, 255, label)


def picture(label: np.ndarray) -> Image.Image:
    """A picture whose colours give the labels away."""
    return Image.fromarray(np.concatenate([COLOURS, np.zeros((1, 3), np.uint8)])[label])


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_gta5(folder: Path, number: int = 3, size: tuple[int, int] = SIZE) -> Path:
    """Palette labels, but the last image's is a colour picture."""
    for i in range(number):
        label = train_ids(i, size)
        save(picture(label), folder / "images" / f"{i + 1:05d}.png")
        ids = Image.fromarray(CITYSCAPES_ID[label].astype(np.uint8)).convert("P")
        ids.putpalette(np.random.default_rng(1).integers(0, 256, 768, dtype=np.uint8).tobytes())
        save(picture(label) if i == number - 1 else ids, folder / "labels" / f"{i + 1:05d}.png")
    return folder


def write_synthia(folder: Path, number: int = 2, size: tuple[int, int] = SIZE) -> Path:
    """16-bit RGB: class, instance, nothing."""
    for i in range(number):
        label = train_ids(i, size)
        save(picture(label), folder / "RGB" / f"{i:07d}.png")
        planes = np.zeros((*size, 3), np.uint16)
        planes[..., 0] = SYNTHIA_ID[label]
        planes[..., 1] = np.arange(planes[..., 1].size).reshape(size) + 300  # instances need both bytes
        path = folder / "GT" / "LABELS" / f"{i:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png16(path, planes, row_filters=(4, 2, 1, 3, 0))
    return folder


def write_cityscapes(folder: Path, number: int = 4, size: tuple[int, int] = SIZE) -> Path:
    for split, towns in {"train": ("aachen", "ulm"), "val": ("lindau",)}.items():
        for i in range(number if split == "train" else 2):
            label, town = train_ids(i, size), towns[i % len(towns)]
            stem = f"{town}_{i:06d}_000019"
            save(picture(label), folder / "leftImg8bit" / split / town / f"{stem}_leftImg8bit.png")
            ids = Image.fromarray(CITYSCAPES_ID[label].astype(np.uint8))
            save(ids, folder / "gtFine" / split / town / f"{stem}_gtFine_labelIds.png")
    return folder
