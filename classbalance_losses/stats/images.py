"""Class indices and colours out of .png and .tif files, by Pillow."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from classbalance_losses.stats.errors import LabelFileError
from classbalance_losses.stats.histogram import Array

GREY, PALETTE = 0, 3  # colour types of the PNG format
BITS, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # tags of the TIFF format, and a value of the latter
NO_COLOUR = {"1", "L", "P", "I", "F", "I;16", "I;16L", "I;16B"}  # Pillow's modes of one number a pixel
DECODED = {"L": "u1", "P": "u1", "I;16": "<u2"}  # modes whose pixels lie in memory as an array's do
MOST_COLOURS = 2**16
DAMAGED = (OSError, SyntaxError, ValueError, TypeError, struct.error)  # what Pillow raises in damaged files


def read_png(path: Path) -> Array:
    """Read the class indices (H, W) of a grey or palette PNG.

    Raises:
        LabelFileError: the file is no PNG, is damaged, or has colour or alpha channels.
        ModuleNotFoundError: Pillow is not installed.
    """
    depth, colour = _png_header(path)
    if colour not in (GREY, PALETTE):
        raise LabelFileError(_not_indices(path, depth))
    with _opened(path, "PNG") as image:
        labels = _decoded(image) if image.mode in DECODED else np.array(image)
    if colour == GREY and depth in (2, 4):
        labels //= 255 // (2**depth - 1)  # Pillow stretches these to 0..255
    return labels


def _png_header(path: Path) -> tuple[int, int]:
    """Return the bit depth and the colour type of a PNG."""
    with path.open("rb") as file:
        header = file.read(26)
    if len(header) < 26 or not header.startswith(b"\x89PNG\r\n\x1a\n"):
        raise LabelFileError(f"{path}: not a PNG file.")
    return header[24], header[25]


def _decoded(image: Any) -> Array:
    """Decode pixels into an array: Pillow's own way there copies them twice."""
    labels = np.empty(image.size[::-1], dtype=DECODED[image.mode])
    ours = _pillow().frombuffer(image.mode, image.size, labels, "raw", image.mode, 0, 1).im
    image.im = ours
    image.load()
    # Pillow keeps the memory that an image has, but does not promise to.
    return labels if image.im is ours else np.array(image)


def _not_indices(path: Path, depth: int) -> str:
    if depth == 16:
        return (
            f"{path}: a PNG with 16-bit colour or alpha channels, which Pillow cannot read faithfully "
            "(SYNTHIA's labels read as all zeros). Take the channel of class indices out with OpenCV, and "
            "save it as 8-bit grey."
        )
    return (
        f"{path}: has colour or alpha channels; expected a grey or palette image whose pixel values are class "
        "indices. If it is an input image, name the folder of the labels; if its colours stand for classes, "
        "say --colors FILE, a text file with the colour of class 0 on its first line, and so on."
    )


def read_tiff(path: Path) -> Array:
    """Read the class indices (H, W) of a TIFF of any integers, or (pages, H, W) of several pages: a volume.

    Raises:
        LabelFileError: the file is damaged, has colour or alpha channels, or pages of several sizes.
        ModuleNotFoundError: Pillow is not installed.
    """
    with _opened(path, "TIFF") as image:
        pages = []
        for _ in _pages(image):
            if image.mode not in NO_COLOUR:
                raise LabelFileError(_not_indices(path, 8))
            pages.append(_stored(image))
    sizes = {page.shape for page in pages}
    if len(sizes) > 1:
        raise LabelFileError(
            f"{path}: has pages of {len(sizes)} sizes; expected one page, or the slices of one volume. "
            "Save the page of the labels by itself."
        )
    return pages[0] if len(pages) == 1 else np.stack(pages)


def _pages(image: Any) -> Iterator[Any]:
    for page in range(getattr(image, "n_frames", 1)):
        image.seek(page)
        yield image


def _stored(image: Any) -> Array:
    """Return the numbers that the page stores: Pillow turns some of them round, and stretches others to 0..255."""
    labels = np.array(image)
    bits = image.tag_v2.get(BITS, (1,))[0]
    if image.mode in ("1", "L") and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        labels = ~labels
    if image.mode == "L" and bits in (2, 4):
        labels //= 255 // (2**bits - 1)
    return labels


def count_colours(path: Path) -> list[tuple[int, tuple[int, int, int]]]:
    """Return how many pixels each colour of a .png or .tif file has; alpha does not count.

    Raises:
        LabelFileError: the file is damaged, or has more colours than classes could have.
        ModuleNotFoundError: Pillow is not installed.
    """
    suffix = path.suffix.lower()
    is_png = suffix == ".png"
    if not is_png and suffix not in (".tif", ".tiff"):
        raise LabelFileError(
            f"{path}: has no colours; --colors expects .png and .tif files. Leave --colors out, or keep other files "
            "in another folder."
        )
    if is_png:
        depth, colour = _png_header(path)
        if depth == 16 and colour not in (GREY, PALETTE):
            raise LabelFileError(_not_indices(path, depth))
    with _opened(path, "PNG" if is_png else "TIFF") as image:
        found = []
        for page in _pages(image):
            colours = (page if page.mode == "RGB" else page.convert("RGB")).getcolors(MOST_COLOURS)
            if colours is None:
                raise LabelFileError(
                    f"{path}: has more than {MOST_COLOURS:,} colours; expected one for each class. If it is an input "
                    "image, name the folder of the labels."
                )
            found += colours
        return found


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[Any]:
    """Open an image; what goes wrong while it is read is told with the name of the file."""
    image_module = _pillow()
    try:
        with image_module.open(path, formats=(kind,)) as image:
            yield image
    except LabelFileError:
        raise
    except (*DAMAGED, image_module.DecompressionBombError) as error:
        raise LabelFileError(
            f"{path}: cannot be read: {error}. If another program reads it, save it from there as .npy or 8-bit PNG."
        ) from error


def _pillow() -> Any:
    try:
        from PIL import Image  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'Reading PNG and TIFF files needs Pillow: pip install "classbalance_losses[stats]".'
        ) from error
    return Image
