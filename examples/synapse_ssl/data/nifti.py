"""NIfTI files as arrays (depth, height, width), with errors that name the file."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def read_nifti(path: Path) -> NDArray[np.number]:
    """The volume of a .nii or .nii.gz file, axes reversed to (D, H, W), as SimpleITK gives it.

    The header's orientation is not applied: the published code does not either.

    Raises:
        FileNotFoundError: no such file.
        ModuleNotFoundError: nibabel is not installed.
        ValueError: the file is cut short, is no NIfTI file, or holds no volume of three axes.
    """
    nibabel = _nibabel()
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found")
    try:
        volume = np.asanyarray(nibabel.load(path).dataobj)
    except (nibabel.filebasedimages.ImageFileError, EOFError, OSError, ValueError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as NIfTI, it may be cut short: {error}") from error
    if volume.ndim != 3:
        raise ValueError(f"{path} must hold a volume of three axes, got shape {volume.shape}")
    return volume.transpose(2, 1, 0)


def _nibabel():  # noqa: ANN202  (an optional module)
    try:
        import nibabel  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'NIfTI files need nibabel: pip install "classbalance_losses[examples]"'
        ) from error
    return nibabel
