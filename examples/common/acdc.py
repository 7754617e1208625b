"""Folders in ACDC's layout: volumes with a class index a voxel, several of them a patient.

    FOLDER/dataset.json                 {"classes": [...]}, optionally "ignore_index"
    FOLDER/{train,val}/NAME.npz         image (D, H, W) and label (D, H, W), both uint8

A volume's patient is what its name says before the first underscore: `patient001_frame01` and `patient001_frame12` are
one patient's. Split by patient, never by volume or slice: they are near copies of each other.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from examples.common.camvid import check_labels

_LAYOUT = "expected FOLDER/dataset.json and FOLDER/{train,val}/NAME.npz with the arrays image and label"
_NOTHING_IGNORED = 255  # a label that no voxel has; padding gets it


@dataclass(frozen=True)
class Volume:
    """One volume: `image` and `label` are uint8 (D, H, W)."""

    name: str
    image: NDArray[np.uint8]
    label: NDArray[np.uint8]

    @property
    def patient(self) -> str:
        """Whose volume it is."""
        return patient_of(self.name)


def patient_of(name: str) -> str:
    """The patient in a volume's name: what stands before the first underscore."""
    return name.split("_", 1)[0]


class AcdcVolumes(Dataset[tuple[Tensor, Tensor]]):
    """One split of a folder in ACDC's layout, a volume an item.

    An item is `(image, label)`: float32 (1, D, H, W) in [0, 1] and int64 (D, H, W). The sizes differ between volumes.

    Args:
        folder: the dataset's folder.
        split: `"train"` or `"val"`.
        patients: keep only these patients' volumes; None keeps all.

    Raises:
        FileNotFoundError: a folder, `dataset.json` or a patient is missing; the message says what was expected.
        ValueError: a file is cut short or is no .npz, lacks an array, its arrays differ in shape or are no uint8
            volumes, or a label has a class that `dataset.json` does not name.
    """

    def __init__(self, folder: str | Path, split: str, *, patients: Sequence[str] | None = None) -> None:
        self.folder = Path(folder)
        self.split = split
        self.classes, self.ignore_index = _read_description(self.folder)
        self.num_classes = len(self.classes)
        self.volumes = [
            read_volume(path, self.num_classes, self.ignore_index)
            for path in _paths(self.folder / split, patients)
        ]

    @property
    def patients(self) -> tuple[str, ...]:
        """The patients, each once, sorted."""
        return tuple(sorted({volume.patient for volume in self.volumes}))

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        volume = self.volumes[index]
        return torch.from_numpy(volume.image).float().div_(255)[None], torch.from_numpy(volume.label).long()


def read_volume(path: Path, num_classes: int, ignore_index: int) -> Volume:
    """Read and check one volume; see `AcdcVolumes` for what it raises."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("image", "label")}
    except KeyError as error:
        raise ValueError(
            f"{path} has no array {error}: expected image and label, both (D, H, W) uint8"
        ) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as .npz, it may be cut short: {error}") from error
    image, label = arrays["image"], arrays["label"]
    for name, array in arrays.items():
        if array.ndim != 3 or array.dtype != np.uint8:
            raise ValueError(
                f"{path}: {name} must be (D, H, W) uint8, got shape {array.shape} of {array.dtype}"
            )
    if image.shape != label.shape:
        raise ValueError(f"{path}: image {image.shape} and label {label.shape} must have the same shape")
    check_labels(label, num_classes, ignore_index, path)
    return Volume(path.stem, image, label)


def _paths(folder: Path, patients: Sequence[str] | None) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"volume folder not found: {folder} ({_LAYOUT})")
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise FileNotFoundError(f"no .npz volume in {folder} ({_LAYOUT})")
    if patients is None:
        return paths
    if missing := set(patients) - {patient_of(path.stem) for path in paths}:
        raise FileNotFoundError(f"no volume of {sorted(missing)[:5]} in {folder}")
    return [path for path in paths if patient_of(path.stem) in set(patients)]


def _read_description(folder: Path) -> tuple[tuple[str, ...], int]:
    if not folder.is_dir():
        raise FileNotFoundError(f"dataset folder not found: {folder} ({_LAYOUT})")
    path = folder / "dataset.json"
    if not path.is_file():
        raise FileNotFoundError(
            f'{path} not found: it names the classes, as {{"classes": ["background", ...]}}'
        )
    try:
        description = json.loads(path.read_text())
        return tuple(description["classes"]), int(description.get("ignore_index", _NOTHING_IGNORED))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{path} must be a JSON object with "classes", a list of names: {error}') from error
