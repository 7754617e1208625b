"""Pascal VOC 2012, and label splits in the form that semi-supervised segmentation publishes them.

VOC/JPEGImages/2007_000032.jpg
VOC/SegmentationClass/2007_000032.png      palette PNG of class indices, 255 at the borders
VOC/SegmentationClassAug/2007_000032.png   optional: the 10 582 labels of SBD, 8-bit; used where it is there
VOC/ImageSets/Segmentation/trainaug.txt    one name a line
SPLITS/labeled.txt, SPLITS/unlabeled.txt   one image a line: a name, or "IMAGE-PATH LABEL-PATH"

Class indices need no translation: 0 is the background, 255 is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from examples.common.camvid import check_labels
from examples.common.scenes.domain import FileDomain, Size
from examples.common.scenes.labels import IGNORE_INDEX

CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train"),
    "tv monitor",
)
LAYOUT = (
    "expected VOC/JPEGImages/NAME.jpg, VOC/SegmentationClass/NAME.png (or SegmentationClassAug) and "
    "VOC/ImageSets/Segmentation/SPLIT.txt"
)


def pascal_voc(folder: str | Path, split: str, size: Size | None = None) -> FileDomain:
    """The images of a list in ImageSets/Segmentation: `"train"`, `"trainaug"`, `"val"`.

    Args:
        folder: the folder with `JPEGImages`; often named VOC2012.
        split: the list's name.
        size: (height, width) to resize to; None keeps each image's own.

    Raises:
        FileNotFoundError: a folder, list, image or label is missing; the message names it and the layout.
        ValueError: the list is empty; or on reading, a label is no 8-bit PNG of one channel or holds another class.
    """
    folder = Path(folder)
    path = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not path.is_file():
        raise FileNotFoundError(f"split list not found: {path} ({LAYOUT})")
    names = read_names(path)
    augmented = folder / "SegmentationClassAug"
    labels = augmented if augmented.is_dir() else folder / "SegmentationClass"
    images = [_existing(folder / "JPEGImages" / f"{name}.jpg") for name in names]
    files = [_existing(labels / f"{name}.png") for name in names]
    return FileDomain(names, lambda i: _read_image(images[i]), lambda i: _read_label(files[i]), size)


def read_names(path: Path) -> tuple[str, ...]:
    """The image names of a list: the stem of each line's first word, without Cityscapes' `_leftImg8bit`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the list is empty, or names an image twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"list of images not found: {path} (one image a line)")
    lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    names = tuple(Path(words[0]).stem.removesuffix("_leftImg8bit") for words in lines)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{path} must list different images, one a line, got {len(names)} lines")
    return names


def read_split(folder: Path, names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The labelled and the unlabelled names of a published split; without unlabeled.txt, all others are unlabelled.

    Raises:
        FileNotFoundError: there is no labeled.txt.
        ValueError: a list names an image that the data does not have, or one image is in both lists.
    """
    labelled = read_names(folder / "labeled.txt")
    known, rest = set(names), folder / "unlabeled.txt"
    unlabelled = (
        read_names(rest) if rest.is_file() else tuple(name for name in names if name not in {*labelled})
    )
    for listed in (labelled, unlabelled):
        if unknown := [name for name in listed if name not in known]:
            raise ValueError(f"{folder} lists {unknown[:3]}, which the data does not have: is it another's?")
    if both := sorted({*labelled} & {*unlabelled}):
        raise ValueError(f"{folder} lists {both[:3]} as labelled and as unlabelled")
    return labelled, unlabelled


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found ({LAYOUT})")
    return path


def _read_image(path: Path) -> Image.Image:
    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    except OSError as error:
        raise ValueError(f"{path} cannot be decoded: {error}") from error


def _read_label(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as file:
            mode, label = file.mode, np.array(file)  # of a palette image: its indices
    except OSError as error:
        raise ValueError(f"{path} cannot be decoded: {error}") from error
    if mode not in ("L", "P"):
        raise ValueError(f"{path} must be an 8-bit PNG of one channel (class indices), got mode {mode!r}")
    check_labels(label, len(CLASSES), IGNORE_INDEX, path)
    return label
