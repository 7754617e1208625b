"""PNGs of 16 bits a channel, for the tests to write: Pillow has none of three or four channels."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_COLOUR_TYPES = {3: 2, 4: 6}  # channels -> PNG's number for RGB and RGBA


def write_png16(path: Path, image: NDArray[np.uint16], *, row_filters: tuple[int, ...] = (0,)) -> None:
    """Write (H, W, 3 or 4) uint16 as a PNG; row y is filtered with `row_filters[y % len(row_filters)]`.

    The filters are those of the PNG specification: 0 none, 1 sub, 2 up, 3 average, 4 Paeth.
    """
    height, width, channels = image.shape
    step = 2 * channels  # bytes a pixel
    rows = (
        np.ascontiguousarray(image.astype(">u2"))
        .view(np.uint8)
        .reshape(height, width * step)
        .astype(np.int16)
    )
    left = np.pad(rows, ((0, 0), (step, 0)))[:, :-step]
    up = np.pad(rows, ((1, 0), (0, 0)))[:-1]
    corner = np.pad(left, ((1, 0), (0, 0)))[:-1]
    guesses = (np.zeros_like(rows), left, up, (left + up) // 2, _paeth(left, up, corner))
    lines = []
    for y, row in enumerate(rows):
        kind = row_filters[y % len(row_filters)]
        lines.append(bytes([kind]) + (row - guesses[kind][y]).astype(np.uint8).tobytes())
    header = struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPES[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(lines))), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks))


def _paeth(left: NDArray[np.int16], up: NDArray[np.int16], corner: NDArray[np.int16]) -> NDArray[np.int16]:
    """PNG's fourth predictor: whichever neighbour is nearest to left + up - corner."""
    guess = left + up - corner
    near_left, near_up, near_corner = (np.abs(guess - x) for x in (left, up, corner))
    use_left = (near_left <= near_up) & (near_left <= near_corner)
    return np.where(use_left, left, np.where(near_up <= near_corner, up, corner))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
