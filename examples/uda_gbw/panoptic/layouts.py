"""The instances of SYNTHIA-RAND-CITYSCAPES and Cityscapes, from the files that their authors publish.

    SYNTHIA/GT/LABELS/0000000.png    16-bit RGB PNG: class id; number of the moving object; 0
    Cityscapes/gtFine/{train,val}/CITY/*_gtFine_instanceIds.png
                                     16-bit PNG: label id * 1000 + number for a thing, else the label id alone

Labels are the codes of `labels.coded`, of the 16 classes that both have. A pixel of a thing without a number is of that
class, and of no instance: in Cityscapes a group whose members were not drawn apart. Other classes are unlabelled.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.common.scenes import layouts
from examples.common.scenes.domain import FileDomain, Size
from examples.common.scenes.labels import IGNORE_INDEX, from_cityscapes_ids, from_synthia_ids
from examples.common.scenes.png16 import read_png16
from examples.uda_gbw.panoptic.labels import CATEGORIES, SHARED, coded

_EACH = 1000  # numbers for the things of one of Cityscapes' label ids
_CLASS_OF_TRAIN_ID = np.full(256, IGNORE_INDEX, np.uint8)
_CLASS_OF_TRAIN_ID[list(SHARED)] = np.arange(len(SHARED))


def synthia(folder: str | Path, size: Size | None) -> FileDomain:
    """SYNTHIA with codes for labels; see `examples.common.scenes.layouts.synthia`."""
    return layouts.synthia(folder, size, read=read_synthia)


def cityscapes(
    folder: str | Path, split: str, size: Size | None, *, resize_labels: bool = True
) -> FileDomain:
    """Cityscapes with codes for labels; see `examples.common.scenes.layouts.cityscapes`."""
    return layouts.cityscapes(
        folder, split, size, resize_labels=resize_labels, kind="instanceIds", read=read_cityscapes
    )


def read_synthia(path: Path) -> NDArray[np.int32]:
    """The codes (H, W) of a file of `GT/LABELS`.

    Raises:
        ValueError: it is no 16-bit PNG of SYNTHIA's class ids.
    """
    planes = read_png16(path)
    return _codes(from_synthia_ids(planes[..., 0], path), planes[..., 1])


def read_cityscapes(path: Path) -> NDArray[np.int32]:
    """The codes (H, W) of an `instanceIds` file.

    Raises:
        ValueError: it is no 16-bit PNG of one channel, or holds other label ids.
    """
    with layouts.opened(path) as file:
        if not file.mode.startswith("I"):  # "I;16", or "I" of older releases of Pillow
            raise ValueError(
                f"{path} must be a 16-bit PNG of one channel (instance ids), got mode {file.mode!r}"
            )
        values = np.asarray(file).astype(np.int32)
    numbered = values >= _EACH
    label = from_cityscapes_ids(np.where(numbered, values // _EACH, values), path)
    # 0 is a number there, and means "none" in a code
    return _codes(label, np.where(numbered, values % _EACH + 1, 0))


def _codes(train_ids: NDArray[np.uint8], number: NDArray[np.integer]) -> NDArray[np.int32]:
    """Codes with instances 1, 2, ...; things of two classes are two, though they have the same number."""
    label = _CLASS_OF_TRAIN_ID[train_ids]
    counted = np.isin(label, CATEGORIES["synthia-cityscapes"].things) & (number > 0)
    pairs = np.where(counted, coded(label, number), 0)
    found, place = np.unique(pairs, return_inverse=True)
    return coded(label, place.reshape(pairs.shape) + (found[0] > 0))
