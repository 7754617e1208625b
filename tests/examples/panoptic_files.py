"""Small files in the layouts of SYNTHIA and Cityscapes with instances, written by the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from png16 import write_png16
from semidavil_files import SYNTHIA_ID, picture, save

from examples.common.scenes.labels import CITYSCAPES_IDS, CLASSES
from examples.uda_gbw.panoptic.labels import CATEGORIES

CITYSCAPES_ID = np.array([*CITYSCAPES_IDS, 0], np.int32)  # train id -> label id; the last is "unlabelled"
NOTHING = 19  # as a train id: unlabelled
NAMES = CATEGORIES["synthia-cityscapes"].names
# What is drawn: class, number, rows and columns in eighths of the sides. The first car and the bus have one number,
# which needs both bytes; the third car has none; a truck is no class of SYNTHIA's, and drawn for Cityscapes alone.
THINGS = (
    ("car", 300, (5, 8), (0, 2)),
    ("bus", 300, (4, 7), (2, 4)),
    ("car", 2, (5, 7), (4, 5)),
    ("car", None, (6, 8), (5, 6)),
    ("person", 1, (3, 5), (6, 7)),
)
TRUCK = ("truck", 4, (5, 6), (7, 8))


def draw(
    size: tuple[int, int], things: tuple = THINGS
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Train ids (19 where unlabelled), numbers (-1: none), and which of `things` a pixel shows (0: none)."""
    label = np.full(size, CLASSES.index("sky"))
    label[size[0] // 2 :] = CLASSES.index("road")
    number, which = np.full(size, -1), np.zeros(size, np.int64)
    for place, (name, own, rows, columns) in enumerate(things, start=1):
        box = tuple(
            slice(part[0] * side // 8, part[1] * side // 8)
            for part, side in zip((rows, columns), size, strict=True)
        )
        label[box] = CLASSES.index(name)
        number[box], which[box] = (-1, 0) if own is None else (own, place)
    label[0] = NOTHING
    return label, number, which


def write_synthia(folder: Path, number: int, size: tuple[int, int]) -> Path:
    for i in range(number):
        label, own, _ = draw(size)
        image, label, own = (np.roll(part, 3 * i, 1) for part in (label, label, own))
        save(picture(image), folder / "RGB" / f"{i:07d}.png")
        planes = np.zeros((*size, 3), np.uint16)
        planes[..., 0], planes[..., 1] = SYNTHIA_ID[label], np.where(own < 0, 0, own)
        path = folder / "GT" / "LABELS" / f"{i:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png16(path, planes)
    return folder


def write_cityscapes(folder: Path, number: int, size: tuple[int, int]) -> Path:
    """`number` images of train, one of val; numbers start at 0, so those of `draw` are lessened by 1."""
    for split, count in {"train": number, "val": 1}.items():
        for i in range(count):
            label, own, _ = draw(size, (*THINGS, TRUCK))
            label, own = (np.roll(part, 5 * i + 1 if split == "train" else 0, 1) for part in (label, own))
            stem = f"ulm_{i:06d}_000019"
            save(picture(label), folder / "leftImg8bit" / split / "ulm" / f"{stem}_leftImg8bit.png")
            ids = CITYSCAPES_ID[label]
            values = np.where(own < 0, ids, 1000 * ids + own - 1).astype(np.uint16)
            path = folder / "gtFine" / split / "ulm" / f"{stem}_gtFine_instanceIds.png"
            save(Image.fromarray(values), path)
    return folder
