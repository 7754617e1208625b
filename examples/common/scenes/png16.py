"""PNGs of 16 bits a channel, as SYNTHIA's label files are.

Pillow has no image mode of three or four 16-bit channels: it opens such a file as 8-bit "RGB" and keeps each value's
*high* byte, so SYNTHIA's class indices, all below 256, become zeros without a word. Pillow's PNG decoder knows a second
raw mode, "RGB;16L", which takes the *other* byte of each pair. Decoding once with each gives all 16 bits, at the speed
of Pillow's C code and without another dependency.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_COLOUR_TYPES = {3: 2, 4: 6}  # channels -> PNG's number for RGB and RGBA


def read_png16(path: Path) -> NDArray[np.uint16]:
    """Read a PNG of 16 bits a channel: (H, W, channels) uint16, with 3 or 4 channels.

    Raises:
        ValueError: the file is no PNG of three or four 16-bit channels, or is damaged.
    """
    high, low = (_decode(path, byte_order) for byte_order in ("B", "L"))
    return (high.astype(np.uint16) << 8) | low


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


def _decode(path: Path, byte_order: str) -> NDArray[np.uint8]:
    """Decode one byte of each 16-bit value: the high one for "B", the low one for "L"."""
    try:
        with Image.open(path) as file:
            tile = file.tile[0]
            raw_mode = f"{file.mode};16"
            if file.format != "PNG" or file.mode not in ("RGB", "RGBA") or tile[3] != raw_mode + "B":
                raise ValueError(
                    f"{path} must be a PNG of three or four channels of 16 bits, got {file.format} of mode {file.mode}"
                    f" ({tile[3]}): is it a colour picture of the labels instead of the labels?"
                )
            file.tile = [(*tile[:3], raw_mode + byte_order)]  # type: ignore[list-item]
            return np.asarray(file)
    except OSError as error:
        raise ValueError(f"{path} cannot be decoded: {error}") from error


def _paeth(left: NDArray[np.int16], up: NDArray[np.int16], corner: NDArray[np.int16]) -> NDArray[np.int16]:
    """PNG's fourth predictor: whichever neighbour is nearest to left + up - corner."""
    guess = left + up - corner
    near_left, near_up, near_corner = (np.abs(guess - x) for x in (left, up, corner))
    use_left = (near_left <= near_up) & (near_left <= near_corner)
    return np.where(use_left, left, np.where(near_up <= near_corner, up, corner))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
