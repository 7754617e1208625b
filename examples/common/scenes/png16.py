"""PNGs of 16 bits a channel, as SYNTHIA's label files are.

Pillow has no image mode of three or four 16-bit channels: it opens such a file as 8-bit "RGB" and keeps each value's
*high* byte, so SYNTHIA's class indices, all below 256, become zeros without a word. Pillow's PNG decoder knows a second
raw mode, "RGB;16L", which takes the *other* byte of each pair. Decoding once with each gives all 16 bits, at the speed
of Pillow's C code and without another dependency.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def read_png16(path: Path) -> NDArray[np.uint16]:
    """Read a PNG of 16 bits a channel: (H, W, channels) uint16, with 3 or 4 channels.

    Raises:
        ValueError: the file is no PNG of three or four 16-bit channels, or is damaged.
    """
    high, low = (_decode(path, byte_order) for byte_order in ("B", "L"))
    return (high.astype(np.uint16) << 8) | low


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
