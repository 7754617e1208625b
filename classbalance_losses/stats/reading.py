"""Labels out of a file of any kind: one for each pixel, or several."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from classbalance_losses.stats.arrays import read_nifti, read_npy, read_npz
from classbalance_losses.stats.errors import LabelFileError
from classbalance_losses.stats.histogram import Array
from classbalance_losses.stats.images import read_png, read_tiff

KEY = "label"  # the array of an .npz file, if no other is named
IMAGES = (".png", ".tif", ".tiff")
NIFTI = (".nii", ".nii.gz")
SUFFIXES = (".png", ".npz", ".npy", ".tif", ".tiff", *NIFTI)


def kind_of(path: Path) -> str | None:
    """Return the ending that tells what is in the file, None for a file of something else."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def read(path: Path, key: str) -> Array:
    """Read the integers of a file; ``key`` names the array of an .npz file.

    Raises:
        LabelFileError: the file cannot be read, or holds other numbers.
        ModuleNotFoundError: Pillow is not installed.
    """
    kind = kind_of(path)
    if kind == ".npz":
        labels = read_npz(path, key)
    elif kind == ".npy":
        labels = read_npy(path)
    elif kind == ".png":
        labels = read_png(path)
    else:
        labels = read_nifti(path) if kind in NIFTI else read_tiff(path)
    if labels.dtype.kind not in "biu":
        raise LabelFileError(
            f"{path}: expected integer class indices, got {labels.dtype}. Save whole numbers as integers, by "
            "labels.astype('uint8'); if it is an input image, name the folder of the labels."
        )
    return labels


def read_many(path: Path, key: str) -> Array:
    """Read several labels of each pixel, (L, H, W) or (L, D, H, W).

    Raises:
        LabelFileError: the file cannot be read, or has one label a pixel.
        ModuleNotFoundError: Pillow is not installed.
    """
    kind = kind_of(path)
    if kind in IMAGES:
        raise LabelFileError(
            f"{path}: a {kind} file has one label a pixel; --task multilabel expects an array (L, H, W) of 0 and 1, "
            "saved by numpy.save, or a .nii file with the labels on its last axis."
        )
    labels = read(path, key)
    if labels.ndim < (4 if kind in NIFTI else 3):
        expected = "(X, Y, Z, L)" if kind in NIFTI else "(L, H, W)"
        raise LabelFileError(
            f"{path}: expected an array {expected} of 0 and 1, got one {labels.shape}. With one label a pixel leave "
            "--task multilabel out."
        )
    return np.moveaxis(labels, -1, 0) if kind in NIFTI else labels
