"""Files of labels: found under a folder, and read as class indices one at a time."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

GREY, PALETTE = 0, 3  # colour types of the PNG format


class LabelFileError(ValueError):
    """A label file, or a folder of them, that cannot be counted."""


class Dataset(NamedTuple):
    """What a ``dataset.json`` says about the labels."""

    path: Path
    classes: list[str]
    ignore_index: int | None


class LabelFiles(Sequence[Tensor]):
    """The label maps of a list of files, read one at a time; each is a batch of one image or volume."""

    def __init__(self, paths: list[Path], key: str, object_label: int | None, ignore_index: int) -> None:
        self.paths, self.key = paths, key
        self.object_label, self.ignore_index = object_label, ignore_index
        self.reading = 0

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        self.reading = index
        path = self.paths[index]
        labels = read_npz(path, self.key) if path.suffix.lower() == ".npz" else read_png(path)
        if labels.dtype.kind not in "biu":
            raise LabelFileError(f"{path}: expected integer class indices, got {labels.dtype}.")
        labels = labels.astype(np.int64)
        if self.object_label is not None:
            labels = self._binary(path, labels)
        return torch.from_numpy(labels).unsqueeze(0)

    def _binary(self, path: Path, labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Make 1 of the object's label, which no other but 0 and the ignored one may be beside."""
        ignored, member = labels == self.ignore_index, labels == self.object_label
        others = labels[~(ignored | member | (labels == 0))]
        if others.size:
            raise LabelFileError(
                f"{path}: expected 0 and the object's label {self.object_label} alone, got {others[0]} too. "
                "Leave --object out, or count masks with hard edges."
            )
        return np.where(ignored, self.ignore_index, member)

    def describe(self) -> str:
        """Say which files these are, to tell one checkpoint from another."""
        checksum = zlib.crc32("\n".join(map(str, self.paths)).encode())
        files = f"{len(self)} label files (checksum {checksum:08x})"
        return files if self.object_label is None else f"{files}, object {self.object_label}"


def read_png(path: Path) -> np.ndarray[Any, Any]:
    """Read the class indices (H, W) of a grey or palette PNG.

    Raises:
        LabelFileError: the file is no PNG, is damaged, or has colour or alpha channels.
        ModuleNotFoundError: Pillow is not installed.
    """
    image_module = _pillow()
    with path.open("rb") as file:
        header = file.read(26)
    if len(header) < 26 or not header.startswith(b"\x89PNG\r\n\x1a\n"):
        raise LabelFileError(f"{path}: not a PNG file.")
    depth, colour = header[24], header[25]
    if colour not in (GREY, PALETTE):
        raise LabelFileError(_not_indices(path, depth))
    try:
        with image_module.open(path) as image:
            labels = np.array(image)
    except (OSError, SyntaxError, ValueError, image_module.DecompressionBombError) as error:
        raise LabelFileError(f"{path}: cannot be read: {error}") from error
    if colour == GREY and depth in (2, 4):
        labels //= 255 // (2**depth - 1)  # Pillow stretches these to 0..255
    return labels


def _not_indices(path: Path, depth: int) -> str:
    if depth == 16:
        return (
            f"{path}: a PNG with 16-bit colour or alpha channels, which Pillow cannot read faithfully "
            "(SYNTHIA's labels read as all zeros). Take the channel of class indices out with OpenCV, and "
            "save it as 8-bit grey."
        )
    return (
        f"{path}: has colour or alpha channels; expected a grey or palette PNG whose pixel values are class "
        "indices. If it is an input image, name the folder of the labels; if its colours stand for classes, "
        "convert it first."
    )


def read_npz(path: Path, key: str) -> np.ndarray[Any, Any]:
    """Read the array called ``key``, class indices of any shape.

    Raises:
        LabelFileError: the file is damaged, or has no such array.
    """
    try:
        with path.open("rb") as file, np.load(file) as archive:
            if key not in archive:
                found = ", ".join(map(repr, archive))
                raise LabelFileError(f"{path}: has no array {key!r}, only {found}. Choose one with --key.")
            labels: np.ndarray[Any, Any] = archive[key]
            return labels
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise LabelFileError(f"{path}: cannot be read: {error}") from error


def find_labels(folder: Path) -> list[Path]:
    """Return the .png and .npz files under ``folder``, sorted.

    Raises:
        LabelFileError: there is no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise LabelFileError(f"{folder}: no such folder.")
    paths = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".npz") and path.is_file()
    )
    if not paths:
        raise LabelFileError(f"{folder}: holds no .png and no .npz files, at any depth.")
    return paths


def find_dataset(folder: Path) -> Dataset | None:
    """Return what the nearest ``dataset.json`` with a list of class names says, in ``folder`` or above it."""
    for parent in (folder.resolve(), *folder.resolve().parents):
        path = parent / "dataset.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        classes = content.get("classes") if isinstance(content, dict) else None
        if isinstance(classes, list) and len(classes) > 1 and all(isinstance(name, str) for name in classes):
            ignore_index = content.get("ignore_index")
            return Dataset(path, classes, ignore_index if isinstance(ignore_index, int) else None)
    return None


def _pillow() -> Any:
    try:
        from PIL import Image  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'Reading PNG files needs Pillow: pip install "classbalance_losses[stats]".'
        ) from error
    return Image
