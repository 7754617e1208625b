"""The windows of HRDA (Hoyer, Dai and Van Gool, ECCV 2022): what a network sees at full size of an image."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import torch

_GRID = 8  # windows start at multiples of it: two cells of the finest map of an image of half the sides


class Box(NamedTuple):
    """A window of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def place(self) -> tuple[object, slice, slice]:
        """The window as an index of (..., H, W)."""
        return (..., slice(self.top, self.top + self.height), slice(self.left, self.left + self.width))


def draw_box(height: int, width: int, generator: torch.Generator) -> Box:
    """A window of half the sides, at a random place."""
    top, left = (
        _GRID * int(torch.randint((side - side // 2) // _GRID + 1, (1,), generator=generator))
        for side in (height, width)
    )
    return Box(top, left, height // 2, width // 2)


def covering_boxes(height: int, width: int) -> list[Box]:
    """Windows of half the sides that cover an image; each begins at half of the former one."""
    tops, lefts = (
        sorted({*range(0, side - side // 2, max(side // 4, 1)), side - side // 2}) for side in (height, width)
    )
    return [Box(top, left, height // 2, width // 2) for top, left in product(tops, lefts)]
