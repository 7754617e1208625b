"""Class tables: what the label files of Cityscapes, GTA5 and SYNTHIA hold, and the 19 classes that are trained.

Sources: the label table that the Cityscapes authors publish with their scripts (ids, train ids and colours; GTA5
follows it), and SYNTHIA-RAND-CITYSCAPES' README (its 22 classes; those that Cityscapes shares map to its train ids).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

IGNORE_INDEX = 255

# train id: (name, Cityscapes id, colour, SYNTHIA id)
_TABLE: tuple[tuple[str, int, tuple[int, int, int], int], ...] = (
    ("road", 7, (128, 64, 128), 3),
    ("sidewalk", 8, (244, 35, 232), 4),
    ("building", 11, (70, 70, 70), 2),
    ("wall", 12, (102, 102, 156), 21),
    ("fence", 13, (190, 153, 153), 5),
    ("pole", 17, (153, 153, 153), 7),
    ("traffic light", 19, (250, 170, 30), 15),
    ("traffic sign", 20, (220, 220, 0), 9),
    ("vegetation", 21, (107, 142, 35), 6),
    ("terrain", 22, (152, 251, 152), 16),
    ("sky", 23, (70, 130, 180), 1),
    ("person", 24, (220, 20, 60), 10),
    ("rider", 25, (255, 0, 0), 17),
    ("car", 26, (0, 0, 142), 8),
    ("truck", 27, (0, 0, 70), 18),
    ("bus", 28, (0, 60, 100), 19),
    ("train", 31, (0, 80, 100), 20),
    ("motorcycle", 32, (0, 0, 230), 12),
    ("bicycle", 33, (119, 11, 32), 11),
)
CLASSES: tuple[str, ...] = tuple(name for name, *_ in _TABLE)
CITYSCAPES_IDS: Mapping[int, int] = {row[1]: train_id for train_id, row in enumerate(_TABLE)}
SYNTHIA_IDS: Mapping[int, int] = {row[3]: train_id for train_id, row in enumerate(_TABLE)}
COLOURS: NDArray[np.uint8] = np.array([row[2] for row in _TABLE], np.uint8)

# Cityscapes numbers its labels 0 to 33 and writes -1 (licence plate) as 255 or, in GTA5, 34. SYNTHIA has 0 to 22.
_CITYSCAPES_VALUES = frozenset({*range(35), 255})
_SYNTHIA_VALUES = frozenset(range(23))

_NOT_IN_SYNTHIA = frozenset({"terrain", "truck", "train"})
_THIN = frozenset({"wall", "fence", "pole"})
SUBSETS: Mapping[int, tuple[int, ...]] = {
    19: tuple(range(19)),
    16: tuple(c for c, name in enumerate(CLASSES) if name not in _NOT_IN_SYNTHIA),
    13: tuple(c for c, name in enumerate(CLASSES) if name not in _NOT_IN_SYNTHIA | _THIN),
}
"""The classes that a score is averaged over: all, those that SYNTHIA shares, and the latter without the thin ones."""


def from_cityscapes_ids(ids: NDArray[np.integer], path: Path) -> NDArray[np.uint8]:
    """Cityscapes' (and GTA5's) label ids (H, W) -> train ids 0 to 18, 255 where the class is not trained.

    Raises:
        ValueError: a value that the label table does not have.
    """
    return _translate(ids, CITYSCAPES_IDS, _CITYSCAPES_VALUES, path, "Cityscapes' label ids 0 to 34")


def from_synthia_ids(ids: NDArray[np.integer], path: Path) -> NDArray[np.uint8]:
    """SYNTHIA's class ids (H, W) -> train ids, 255 where the class is not trained.

    Raises:
        ValueError: a value that SYNTHIA's table does not have.
    """
    return _translate(ids, SYNTHIA_IDS, _SYNTHIA_VALUES, path, "SYNTHIA's class ids 0 to 22")


def from_colours(colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A colour picture of labels (H, W, 3), in Cityscapes' colours -> train ids, 255 for every other colour."""
    codes = _code(colours)
    order = np.argsort(_code(COLOURS))
    known = _code(COLOURS)[order]
    place = np.searchsorted(known, codes).clip(max=len(known) - 1)
    return np.where(known[place] == codes, order[place], IGNORE_INDEX).astype(np.uint8)


def _translate(
    ids: NDArray[np.integer], table: Mapping[int, int], allowed: frozenset[int], path: Path, expected: str
) -> NDArray[np.uint8]:
    present = np.unique(ids)
    if unknown := [int(value) for value in present if int(value) not in allowed]:
        raise ValueError(f"{path} holds the values {unknown[:5]}: expected {expected}")
    lookup = np.full(256, IGNORE_INDEX, np.uint8)
    lookup[list(table)] = list(table.values())
    return lookup[ids]


def _code(colours: NDArray[np.uint8]) -> NDArray[np.int64]:
    red, green, blue = np.moveaxis(colours.astype(np.int64), -1, 0)
    return (red << 16) | (green << 8) | blue
