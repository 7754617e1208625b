"""Folders in CamVid's layout: real street images with a class index a pixel.

FOLDER/dataset.json                       {"classes": [...], "ignore_index": 255}
FOLDER/{train,val}/images/NAME.jpg        RGB
FOLDER/{train,val}/labels/NAME.png        uint8 class index of the same stem and size
FOLDER/splits/LIST.txt                    optional: stems of the train folder, one a line
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from examples.common.stored import StoredImages

_LAYOUT = (
    "expected FOLDER/{train,val}/images/*.jpg and labels/*.png of the same stems, and FOLDER/dataset.json"
)


class CamVid(StoredImages):
    """One split of a folder in CamVid's layout, decoded once and kept in memory as bytes.

    An item is `(image, label)`: float32 (3, H, W) in [0, 1] and int64 (H, W), `ignore_index` where unlabelled.

    Args:
        folder: the dataset's folder.
        split: `"train"`, `"val"` (all of that subfolder), or the name of a list in `FOLDER/splits`, whose stems are
            looked up in the train folder: `"train_alt"`, `"val_alt"`.

    Raises:
        FileNotFoundError: a folder, list, image or label is missing; the message names it and what was expected.
        ValueError: `dataset.json` lacks a key, an image and its label differ in size, the images differ in size, a
            label is not one 8-bit channel or has a class that `dataset.json` does not name.
    """

    def __init__(self, folder: str | Path, split: str) -> None:
        self.folder = Path(folder)
        self.split = split
        self.classes, self.ignore_index = read_description(self.folder)
        self.num_classes = len(self.classes)
        self.stems, source = _stems(self.folder, split)
        pairs = [_read_pair(source, stem, self.num_classes, self.ignore_index) for stem in self.stems]
        sizes = {image.shape[:2] for image, _ in pairs}
        if len(sizes) > 1:
            raise ValueError(f"{source}: a split's images must share one size (H, W), got {sorted(sizes)}")
        images = torch.from_numpy(np.stack([image for image, _ in pairs]).transpose(0, 3, 1, 2))
        super().__init__(images, torch.from_numpy(np.stack([label for _, label in pairs])))


def read_description(folder: Path) -> tuple[tuple[str, ...], int]:
    """The class names and the ignored label of a dataset folder, from its `dataset.json`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"dataset folder not found: {folder} ({_LAYOUT})")
    path = folder / "dataset.json"
    if not path.is_file():
        raise FileNotFoundError(
            f'{path} not found: it names the classes, as {{"classes": [...], "ignore_index": 255}}'
        )
    try:
        description = json.loads(path.read_text())
        classes, ignore_index = tuple(description["classes"]), int(description["ignore_index"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path} must be a JSON object with "classes" (a list of names) and "ignore_index" (an integer): {error}'
        ) from error
    return classes, ignore_index


def _stems(folder: Path, split: str) -> tuple[list[str], Path]:
    """The stems of a split, sorted, and the folder that holds their images and labels."""
    if split in ("train", "val"):
        source = folder / split
        images = source / "images"
        if not images.is_dir():
            raise FileNotFoundError(f"image folder not found: {images} ({_LAYOUT})")
        stems = sorted(path.stem for path in images.glob("*.jpg"))
        if not stems:
            raise FileNotFoundError(f"no .jpg image in {images} ({_LAYOUT})")
        return stems, source
    path = folder / "splits" / f"{split}.txt"
    if not path.is_file():
        known = ["train", "val", *sorted(p.stem for p in (folder / "splits").glob("*.txt"))]
        raise FileNotFoundError(f"split list not found: {path}; splits are {', '.join(known)}")
    stems = sorted(path.read_text().split())
    if not stems:
        raise ValueError(f"{path} is empty: expected the stem of one training image a line")
    return stems, folder / "train"


def _read_pair(
    source: Path, stem: str, num_classes: int, ignore_index: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    image_path, label_path = source / "images" / f"{stem}.jpg", source / "labels" / f"{stem}.png"
    for path in (image_path, label_path):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} not found: every image needs a label of the same stem ({_LAYOUT})"
            )
    try:
        with Image.open(image_path) as file:
            image = np.asarray(file.convert("RGB"))
        with Image.open(label_path) as file:
            mode, label = file.mode, np.asarray(file)
    except OSError as error:
        raise ValueError(f"{image_path} or its label cannot be decoded: {error}") from error
    if mode not in ("L", "P") or label.ndim != 2:
        raise ValueError(
            f"{label_path} must be an 8-bit image of one channel (class indices), got mode {mode!r}"
        )
    if label.shape != image.shape[:2]:
        raise ValueError(
            f"{label_path} is {label.shape[1]}x{label.shape[0]} and its image {image.shape[1]}x{image.shape[0]}: "
            "they must have the same size"
        )
    check_labels(label, num_classes, ignore_index, label_path)
    return image, label


def check_labels(label: NDArray[np.uint8], num_classes: int, ignore_index: int | None, path: Path) -> None:
    """Raise ValueError when a label file holds a class that the dataset does not have."""
    unknown = [int(v) for v in np.unique(label) if v >= num_classes and v != ignore_index]
    if unknown:
        ignored = "" if ignore_index is None else f" or {ignore_index} (ignored)"
        raise ValueError(f"{path} holds labels {unknown[:5]}: expected 0 to {num_classes - 1}{ignored}")
