"""GTA5, SYNTHIA-RAND-CITYSCAPES and Cityscapes, in the folders and encodings that their authors publish.

    GTA5/images/00001.png            GTA5/labels/00001.png               palette PNG of label ids, or its colours
    SYNTHIA/RGB/0000000.png          SYNTHIA/GT/LABELS/0000000.png       16-bit RGB PNG: class id, instance, 0
    Cityscapes/leftImg8bit/{train,val}/CITY/CITY_SEQ_FRAME_leftImg8bit.png
    Cityscapes/gtFine/{train,val}/CITY/CITY_SEQ_FRAME_gtFine_labelIds.png   8-bit PNG of label ids

Each reader translates to Cityscapes' 19 train ids and resizes; see `labels.py` for the tables. Who wants something else
of the label files, such as the instances, gives a reader of one file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from examples.common.scenes.domain import FileDomain, Size
from examples.common.scenes.labels import from_cityscapes_ids, from_colours, from_synthia_ids
from examples.common.scenes.png16 import read_png16

GTA5_LAYOUT = "expected GTA5/images/00001.png ... and GTA5/labels/00001.png ... of the same names"
SYNTHIA_LAYOUT = (
    "expected SYNTHIA/RGB/0000000.png ... and SYNTHIA/GT/LABELS/0000000.png ... of the same names"
)
CITYSCAPES_LAYOUT = (
    "expected Cityscapes/leftImg8bit/{train,val}/CITY/*_leftImg8bit.png and "
    "Cityscapes/gtFine/{train,val}/CITY/*_gtFine_labelIds.png"
)
_Read = Callable[[Path], NDArray[np.integer]]


def gta5(folder: str | Path, size: Size | None = (760, 1280)) -> FileDomain:
    """GTA5 (Richter et al., 2016). Its size as a source is that of the paper's section 4.2.

    Raises:
        FileNotFoundError: a folder or a label is missing; the message names it and the layout.
        ValueError: on reading, a label is neither a palette of label ids nor a picture in Cityscapes' colours.
    """
    folder = Path(folder)
    images = _listed(folder / "images", "*.png", GTA5_LAYOUT)
    labels = [_existing(folder / "labels" / path.name, GTA5_LAYOUT) for path in images]
    return _domain(images, labels, _read_gta5, size)


def synthia(folder: str | Path, size: Size | None = (760, 1280), *, read: _Read | None = None) -> FileDomain:
    """SYNTHIA-RAND-CITYSCAPES (Ros et al., 2016). Terrain, truck and train do not occur in it.

    Args:
        folder: the folder with `RGB` and `GT`.
        size: (height, width) to resize to; None keeps the files' size.
        read: a label file -> (H, W); None gives train ids.

    Raises:
        FileNotFoundError: a folder or a label is missing; the message names it and the layout.
        ValueError: on reading, a label is no 16-bit PNG of SYNTHIA's class ids.
    """
    folder = Path(folder)
    images = _listed(folder / "RGB", "*.png", SYNTHIA_LAYOUT)
    labels = [_existing(folder / "GT" / "LABELS" / path.name, SYNTHIA_LAYOUT) for path in images]
    return _domain(images, labels, read or _read_synthia, size)


def cityscapes(
    folder: str | Path,
    split: str,
    size: Size | None = (512, 1024),
    *,
    resize_labels: bool = True,
    kind: str = "labelIds",
    read: _Read | None = None,
) -> FileDomain:
    """Cityscapes (Cordts et al., 2016), fine annotations.

    Args:
        folder: the folder with `leftImg8bit` and `gtFine`.
        split: `"train"` or `"val"`.
        size: (height, width) to resize to; None keeps the files' size.
        resize_labels: labels too; scores are taken at the labels' own size.
        kind: which of the label files, `*_gtFine_KIND.png`.
        read: a label file -> (H, W); None gives train ids.

    Raises:
        FileNotFoundError: a folder or a label is missing; the message names it and the layout.
        ValueError: on reading, a label is no 8-bit PNG of label ids (`labelTrainIds` are not read).
    """
    folder = Path(folder)
    images = _listed(folder / "leftImg8bit" / split, "*/*_leftImg8bit.png", CITYSCAPES_LAYOUT)
    layout = CITYSCAPES_LAYOUT.replace("labelIds", kind)
    labels = [_existing(_cityscapes_label(folder, split, path, kind), layout) for path in images]
    return _domain(images, labels, read or _read_cityscapes, size, resize_labels=resize_labels)


def _cityscapes_label(folder: Path, split: str, image: Path, kind: str) -> Path:
    name = image.name.removesuffix("_leftImg8bit.png") + f"_gtFine_{kind}.png"
    return folder / "gtFine" / split / image.parent.name / name


def _domain(
    images: list[Path], labels: list[Path], read: _Read, size: Size | None, *, resize_labels: bool = True
) -> FileDomain:
    names = [path.stem.removesuffix("_leftImg8bit") for path in images]
    return FileDomain(
        names, lambda i: _read_rgb(images[i]), lambda i: read(labels[i]), size, resize_labels=resize_labels
    )


def _read_rgb(path: Path) -> Image.Image:
    with opened(path) as file:
        return file.convert("RGB")


def _read_gta5(path: Path) -> NDArray[np.uint8]:
    with opened(path) as file:
        if file.mode in ("P", "L"):  # the palette holds the colours; its indices are the label ids
            return from_cityscapes_ids(np.asarray(file), path)
        if file.mode in ("RGB", "RGBA"):
            return from_colours(np.asarray(file.convert("RGB")))
        raise ValueError(
            f"{path} must be a palette PNG of label ids or an RGB picture, got mode {file.mode!r}"
        )


def _read_synthia(path: Path) -> NDArray[np.uint8]:
    return from_synthia_ids(read_png16(path)[..., 0], path)


def _read_cityscapes(path: Path) -> NDArray[np.uint8]:
    with opened(path) as file:
        if file.mode != "L":
            raise ValueError(
                f"{path} must be an 8-bit PNG of one channel (label ids), got mode {file.mode!r}"
            )
        return from_cityscapes_ids(np.asarray(file), path)


def opened(path: Path) -> Image.Image:
    """A decoded image file.

    Raises:
        ValueError: it cannot be decoded.
    """
    try:
        image = Image.open(path)
        image.load()
    except OSError as error:
        raise ValueError(f"{path} cannot be decoded: {error}") from error
    return image


def _listed(folder: Path, pattern: str, layout: str) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"folder not found: {folder} ({layout})")
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise FileNotFoundError(f"no {pattern} in {folder} ({layout})")
    return paths


def _existing(path: Path, layout: str) -> Path:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"folder not found: {path.parent} ({layout})")
    if not path.is_file():
        raise FileNotFoundError(f"label not found: {path} ({layout})")
    return path
