"""Arrays of labels out of .npy, .npz, .nii and .nii.gz files."""

from __future__ import annotations

import gzip
import math
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from classbalance_losses.stats.errors import LabelFileError
from classbalance_losses.stats.histogram import Array

HEADER = 348  # bytes of a NIfTI-1 header
NIFTI_2_HEADER = 540
ROUNDING, LARGEST = 1e-3, 2**31
# The codes of the NIfTI-1 format for types of numbers.
NIFTI_TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}


def read_npz(path: Path, key: str) -> Array:
    """Read the array called ``key``.

    Raises:
        LabelFileError: the file is damaged, or has no such array.
    """
    try:
        with path.open("rb") as file, np.load(file) as archive:
            if key not in archive:
                found = ", ".join(map(repr, archive))
                only = f", only {found}. Choose one with --key" if found else ", and no other"
                raise LabelFileError(f"{path}: has no array {key!r}{only}.")
            labels: Array = archive[key]
            return labels
    except LabelFileError:
        raise
    except (OSError, EOFError, ValueError, tokenize.TokenError, zipfile.BadZipFile, zlib.error) as error:
        raise LabelFileError(f"{path}: cannot be read: {error}") from error


def read_npy(path: Path) -> Array:
    """Read an array.

    Raises:
        LabelFileError: the file is damaged, or holds something else.
    """
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file)
    except (OSError, EOFError, ValueError, tokenize.TokenError) as error:  # numpy parses a header of Python
        raise LabelFileError(f"{path}: cannot be read: {error}") from error


def read_nifti(path: Path) -> Array:
    """Read the voxels of a NIfTI-1 file, (X, Y, Z) or with more axes, as whole numbers.

    Raises:
        LabelFileError: the file is damaged or no NIfTI-1, or its voxels are not whole numbers.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise LabelFileError(f"{path}: cannot be read: {error}") from error
    order = _byte_order(path, content)
    size, code, offset, slope, intercept = _header(content, order)
    dtype = NIFTI_TYPES.get(code)
    if dtype is None:
        raise LabelFileError(
            f"{path}: its voxels are of NIfTI's data type {code}; expected integer class indices. If it is an input "
            "volume, name the folder of the labels."
        )
    count = math.prod(size)
    if len(content) < offset + count * int(dtype[1]):
        raise LabelFileError(f"{path}: cannot be read: it ends before its last voxel.")
    voxels = _numbers(content, order + dtype, offset, count).reshape(size, order="F")
    if slope != 0 and (slope, intercept) != (
        1,
        0,
    ):  # 0 is the format's word for no scaling, whatever the intercept
        voxels = voxels * slope + intercept
    return _whole(path, voxels)


def _byte_order(path: Path, content: bytes) -> str:
    """Return the mark of the file's byte order, in which the header tells its own size."""
    for order in ("<", ">") if len(content) > HEADER else ():
        size, axes = _numbers(content, order + "i4", 0), _numbers(content, order + "i2", 40, 8)
        if (
            size == HEADER
            and content[344:347] == b"n+1"
            and 1 <= axes[0] <= 7
            and axes[1 : 1 + axes[0]].min() > 0
        ):
            return order
        if size == NIFTI_2_HEADER:
            raise LabelFileError(
                f"{path}: a NIfTI-2 file; expected NIfTI-1. Convert it with nibabel (pip install nibabel): "
                "nibabel.Nifti1Image.from_image(nibabel.load(FILE)).to_filename(FILE)."
            )
    raise LabelFileError(f"{path}: not a NIfTI-1 file that holds both header and voxels (.nii or .nii.gz).")


def _header(content: bytes, order: str) -> tuple[tuple[int, ...], int, int, float, float]:
    """Return the shape, the code of the type, where the voxels begin, and what they are scaled by."""
    axes = _numbers(content, order + "i2", 40, 8)
    code = int(_numbers(content, order + "i2", 70)[0])
    offset, slope, intercept = map(float, _numbers(content, order + "f4", 108, 3))
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        slope = intercept = 0.0  # written by programs that mean no scaling
    return tuple(map(int, axes[1 : 1 + axes[0]])), code, int(offset), slope, intercept


def _numbers(content: bytes, dtype: str, offset: int, count: int = 1) -> Array:
    return np.frombuffer(content, dtype, count, offset)


def _whole(path: Path, voxels: Array) -> Array:
    """Make integers of whole numbers: many programs write labels as floats, or scaled, which rounds them."""
    if voxels.dtype.kind in "iu":
        return voxels
    labels = np.rint(np.where(abs(voxels) < LARGEST, voxels, 0))
    odd = voxels[~(abs(voxels - labels) < ROUNDING)]  # NaN, and what no integer can hold, too
    if odd.size:
        raise LabelFileError(
            f"{path}: has a voxel of {odd[0]:g}; expected class indices. Resample labels with the nearest "
            "neighbour; if it is an input volume, name the folder of the labels."
        )
    return labels.astype(np.int64)
