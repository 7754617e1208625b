"""Smooth noise, made once and then cut and stretched, because drawing fresh noise for each image is slow."""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 256


def resize(field: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """A 2-D field stretched to `size` (height, width), bilinearly."""
    picture = Image.fromarray(np.ascontiguousarray(field, dtype=np.float32))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR), dtype=np.float32)


@cache
def tile(cells: int) -> NDArray[np.float32]:
    """A periodic noise tile (256, 256), mean 0 and deviation 1, whose blobs are 256 / cells pixels wide."""
    raw = np.random.default_rng(cells).standard_normal((cells, cells)).astype(np.float32)
    if cells < SIDE:
        padded = np.pad(raw, 2, mode="wrap")
        step = SIDE // cells
        raw = resize(padded, ((cells + 4) * step, (cells + 4) * step))[
            2 * step : -2 * step, 2 * step : -2 * step
        ]
    return np.asarray((raw - raw.mean()) / raw.std(), dtype=np.float32)


@cache
def fractal() -> NDArray[np.float32]:
    """A periodic tile (256, 256) of several octaves, mean 0 and deviation 1."""
    total = sum(tile(cells) * cells**-0.5 for cells in (8, 16, 32, 64, 128))
    return np.asarray(total / np.std(total), dtype=np.float32)


def lookup(field: NDArray[np.float32], x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    """A periodic tile read at the real coordinates x and y (same shape), nearest entry."""
    column = x.astype(np.int32) & (SIDE - 1)
    row = y.astype(np.int32) & (SIDE - 1)
    return np.asarray(field.ravel()[(row << 8) | column])


def screen(size: tuple[int, int], cells: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Smooth noise over a picture of `size`, about `cells` blobs high, mean 0 and deviation about 1."""
    rows = max(2, round(cells))
    columns = max(2, round(cells * size[1] / size[0]))
    return resize(rng.standard_normal((rows, columns)).astype(np.float32), size)
