"""Image and label files in one place: an image's name is the stem of its file, and its label has the same one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from examples.common.scenes.domain import FileDomain, Size

Label = NDArray[np.uint8]


def folder_domain(
    images: Path,
    labels: Path,
    layout: str,
    translate: Callable[[Label, Path], Label],
    names: Sequence[str] | None = None,
    size: Size | None = None,
) -> FileDomain:
    """The pairs `images/NAME.jpg`, `labels/NAME.png`.

    Each folder is listed once: COCO's has more than a hundred thousand files.

    Args:
        images: a folder of JPEGs.
        labels: a folder of 8-bit PNGs of one channel; it may hold other labels too.
        layout: what is expected, for messages.
        translate: a label as it is in its file, and the file -> class indices, 255 where ignored.
        names: which images, in which order; None takes all, sorted.
        size: (height, width) to resize to; None keeps each image's own.

    Raises:
        FileNotFoundError: a folder, image or label is missing; the message names it and the layout.
        ValueError: on reading, a file cannot be decoded, or a label is no 8-bit PNG of one channel.
    """
    there, labelled = _stems(images, ".jpg", layout), _stems(labels, ".png", layout)
    chosen = tuple(sorted(there) if names is None else names)
    for known, folder, suffix in ((there, images, ".jpg"), (labelled, labels, ".png")):
        if missing := next((name for name in chosen if name not in known), None):
            raise FileNotFoundError(f"{folder / (missing + suffix)} not found ({layout})")

    def read(index: int) -> Label:
        path = labels / f"{chosen[index]}.png"
        return translate(_read_label(path), path)

    return FileDomain(chosen, lambda i: _read_image(images / f"{chosen[i]}.jpg"), read, size)


def _stems(folder: Path, suffix: str, layout: str) -> set[str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"folder not found: {folder} ({layout})")
    stems = {path.stem for path in folder.iterdir() if path.suffix == suffix}
    if not stems:
        raise FileNotFoundError(f"no {suffix} file in {folder} ({layout})")
    return stems


def _read_image(path: Path) -> Image.Image:
    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    except OSError as error:
        raise ValueError(f"{path} cannot be decoded: {error}") from error


def _read_label(path: Path) -> Label:
    try:
        with Image.open(path) as file:
            mode, label = file.mode, np.array(file)  # of a palette image: its indices
    except OSError as error:
        raise ValueError(f"{path} cannot be decoded: {error}") from error
    if mode not in ("L", "P"):
        raise ValueError(f"{path} must be an 8-bit PNG of one channel (class indices), got mode {mode!r}")
    return label
