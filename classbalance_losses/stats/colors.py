"""The colours that stand for classes: a text file of them, and images counted by it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from classbalance_losses.stats.errors import LabelFileError
from classbalance_losses.stats.histogram import Counts
from classbalance_losses.stats.images import count_colours

Colour = tuple[int, int, int]

LINE = re.compile(r"(?:#([0-9a-fA-F]{6})|(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3}))(?:[\s,]+(.*))?")
MOST_SHOWN = 5  # colours in a sentence


class Colours(NamedTuple):
    """What a file of colours says: the class of each, and the names of the classes."""

    path: Path
    classes: dict[Colour, int]
    names: list[str]


def read_colours(path: Path) -> Colours:
    """Read ``R G B name`` or ``#rrggbb name``, a class a line, the name being optional.

    Raises:
        LabelFileError: a line is something else, or two lines have the same colour.
    """
    classes: dict[Colour, int] = {}
    names: list[str] = []
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if not line.strip():
            continue
        colour, name = _parsed(path, line.strip())
        if colour in classes:
            raise LabelFileError(
                f"{path}: has the colour {_shown(colour)} for class {classes[colour]} and again for class "
                f"{len(names)}. Give each class a colour of its own, class 0 on the first line."
            )
        classes[colour] = len(names)
        names.append(name or f"class {len(names)}")
    return Colours(path, classes, names)


def _parsed(path: Path, line: str) -> tuple[Colour, str]:
    match = LINE.fullmatch(line)
    if match:
        hexadecimal, *decimal, name = match.groups()
        red, green, blue = bytes.fromhex(hexadecimal) if hexadecimal else map(int, decimal)
        if max(red, green, blue) <= 255:
            return (red, green, blue), name or ""
    raise LabelFileError(
        f"{path}: expected lines such as '128 64 128 road' or '#804080 road', each number at most 255 and the name "
        f"left out if you like, got {line!r}."
    )


def _shown(colour: Colour) -> str:
    return "{} {} {}".format(*colour)


def count_by_colours(path: Path, colours: Colours, ignore_index: int, ignore_unknown: bool) -> Counts:
    """Count the classes of an image by its colours.

    Raises:
        LabelFileError: the image has colours that stand for no class, and they are not to be ignored.
    """
    numbers: dict[int, int] = {}
    unknown: dict[Colour, int] = {}
    for number, colour in count_colours(path):
        label = colours.classes.get(colour)
        if label is None:
            unknown[colour] = unknown.get(colour, 0) + number
        else:
            numbers[label] = numbers.get(label, 0) + number
    if unknown and not ignore_unknown:
        raise LabelFileError(_of_unknown(path, colours, unknown))
    if unknown:
        numbers[ignore_index] = numbers.get(ignore_index, 0) + sum(unknown.values())
    values = sorted(numbers)
    return Counts(np.array(values, dtype=np.int64), np.array([numbers[value] for value in values]))


def _of_unknown(path: Path, colours: Colours, unknown: dict[Colour, int]) -> str:
    often = sorted(unknown, key=lambda colour: -unknown[colour])
    shown = ", ".join(f"{_shown(colour)} ({unknown[colour]:,} pixels)" for colour in often[:MOST_SHOWN])
    more = f", and {len(often) - MOST_SHOWN:,} more" if len(often) > MOST_SHOWN else ""
    mixed = (
        " So many come of lossy compression or of resizing that mixes colours: save labels as PNG, and resize them "
        "with the nearest neighbour."
        if len(often) > len(colours.names)
        else ""
    )
    return (
        f"{path}: has colours that {colours.path} does not have: {shown}{more}. Add each as a line at the end, as "
        f"classes from {len(colours.names)} on, or say --ignore-unknown to leave their pixels out.{mixed}"
    )
