"""Synapse: the multi-organ CT of "Beyond the Cranial Vault" (BTCV), 30 scans, 13 organs.

Registration at synapse.org (syn3193805) gives the scans; the project has none of them. Two layouts are read:

    FOLDER/RawData/Training/img/img0001.nii.gz      FOLDER/RawData/Training/label/label0001.nii.gz    as downloaded
    FOLDER/imagesTr/img0001.nii.gz                  FOLDER/labelsTr/label0001.nii.gz                  as in GenericSSL

`examples/synapse_ssl/splits` has the published lists: 20 scans to train on, 4 of them labelled at a budget of 0.2, 4 to
validate, 6 to test. Other budgets extend or shorten the published list in a seeded order.

Intensities are clipped to [-75, 275] HU and brought to [0, 1] by each volume's least and greatest value. Voxels keep
the scan's spacing, whatever it is in mm. The published code has two ways to a size, `data.preprocessing`:

- `resize` (GenericSSL): each volume to 80 x 160 x 160 (or `data.size`), then clipped;
- `half` (DHC): clipped, then half the height and width, the depth as it is. DHC's evaluation of two networks halves the
  scans; its evaluation of one network leaves them at their size, which is not reproduced.

Prepared volumes are kept in `KEPT/btcv-WAY/ID-KEY.npz`, 10 MB each for `resize` and five times that for `half`. The key
is one of all these choices and of both files' sizes and times, so that a replaced file is read again.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from examples.common.training import write_atomically
from examples.synapse_ssl.data.config import DataConfig, Size, check_patch
from examples.synapse_ssl.data.nifti import read_nifti
from examples.synapse_ssl.data.resample import resize_image, resize_label
from examples.synapse_ssl.data.splits import kept_labelled, read_list
from examples.synapse_ssl.data.task import Stored, Subset, Task

CLASSES = (
    "background",
    "spleen",
    "right_kidney",
    "left_kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior_vena_cava",
    "portal_and_splenic_veins",
    "pancreas",
    "right_adrenal_gland",
    "left_adrenal_gland",
)
SPLITS = Path(__file__).parent.parent / "splits"
SIZE: Size = (80, 160, 160)  # of preprocessing = "resize": the patch and a quarter of it
WINDOW = (-75.0, 275.0)  # HU
_LAYOUTS = (("RawData/Training/img", "RawData/Training/label"), ("imagesTr", "labelsTr"))
_EXPECTED = (
    "expected RawData/Training/{img,label} or {imagesTr,labelsTr} with img0001.nii.gz and label0001.nii.gz"
)


def btcv_task(config: DataConfig, kept: Path, *, progress: bool = False) -> Task:
    """BTCV as a task; see `load_task`. Prepares all scans of the lists that are not prepared yet.

    Raises:
        FileNotFoundError: the folder has neither layout, or a file of the lists is missing.
        ValueError: a file is cut short or no NIfTI volume; a scan without contrast in the window; a label outside 0 to
            13; image and label of different shapes; a training volume that is smaller than the patch.
    """
    images, labels = _folders(Path(config.folder))
    ids = {split: read_list(SPLITS / f"{split}.txt") for split in ("train", "validation", "test")}
    names = [name for split in ids.values() for name in split]
    paths = {}
    for name in tqdm(names, desc="prepare", unit="scan", leave=False, disable=not progress):
        files = images / f"img{name}.nii.gz", labels / f"label{name}.nii.gz"
        paths[name] = prepared(*files, config, kept / f"btcv-{config.preprocessing}")
    for name in ids["train"]:
        check_patch(f"scan {name}, prepared,", tuple(_read(paths[name], "shape").tolist()), config.patch)
    cases = _cases(names, paths)
    # Ids are the same for everybody, so lists of any folder and size may share a place.
    lists = kept / "splits" / f"btcv-seed{config.split_seed}"
    published = read_list(SPLITS / "labelled_0.2.txt")
    labelled = kept_labelled(lists, ids["train"], config.budget, config.split_seed, published)
    others = [name for name in ids["train"] if name not in set(labelled)]
    return Task(
        CLASSES,
        Subset(cases, labelled),
        Subset(cases, others or ids["train"]),
        Subset(cases, ids["validation"]),
        Subset(cases, ids["test"]),
    )


def prepared(image_path: Path, label_path: Path, config: DataConfig, kept: Path) -> Path:
    """The file with a prepared scan: `image` float32 and `label` uint8, both (D, H, W), and their `shape`.

    It is written where it is missing, and not before both files were read and checked.
    """
    for path in (image_path, label_path):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} not found: every scan of the published lists needs an image and a label"
            )
    path = (
        kept
        / f"{image_path.name.removeprefix('img').split('.')[0]}-{_key(image_path, label_path, config)}.npz"
    )
    if not path.is_file():
        image, label = _prepare(image_path, label_path, config)

        def save(partial: Path) -> None:
            with partial.open("wb") as file:
                np.savez(file, image=image.numpy(), label=label.numpy(), shape=np.array(label.shape))

        write_atomically(path, save)
    return path


def _folders(folder: Path) -> tuple[Path, Path]:
    for images, labels in _LAYOUTS:
        if (folder / images).is_dir():
            return folder / images, folder / labels
    problem = "has neither layout" if folder.is_dir() else "not found"
    raise FileNotFoundError(f"BTCV's folder {folder} {problem}: {_EXPECTED}")


def _key(image_path: Path, label_path: Path, config: DataConfig) -> str:
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in (image_path, label_path)]
    choices = json.dumps([config.preprocessing, config.size or SIZE, WINDOW, files])
    return hashlib.sha256(choices.encode()).hexdigest()[:12]


def _prepare(image_path: Path, label_path: Path, config: DataConfig) -> tuple[Tensor, Tensor]:
    scan, label = read_nifti(image_path), _read_label(label_path)
    if scan.shape != tuple(label.shape):
        raise ValueError(
            f"{image_path} is {scan.shape} and {label_path} {tuple(label.shape)} (D, H, W): "
            "they must have the same shape"
        )
    image = torch.from_numpy(np.ascontiguousarray(scan, dtype=np.float32))
    if config.preprocessing == "half":
        depth, height, width = scan.shape
        size = (depth, height // 2, width // 2)
        return resize_image(_windowed(image, image_path), size), resize_label(label, size)
    size = config.size or SIZE
    return _windowed(resize_image(image, size), image_path), resize_label(label, size)


def _windowed(image: Tensor, path: Path) -> Tensor:
    """Clipped to the window, and to [0, 1] by its least and greatest value."""
    image = image.clamp(*WINDOW)
    least, greatest = image.min(), image.max()
    if not greatest > least:  # NaN too
        raise ValueError(
            f"{path} has no contrast in {WINDOW} HU, from {least.item()} to {greatest.item()}: is it CT?"
        )
    return (image - least) / (greatest - least)


def _read_label(path: Path) -> Tensor:
    values: NDArray[np.number] = read_nifti(path)
    present = np.unique(values)
    unknown = present[~np.isin(present, np.arange(len(CLASSES)))]
    if unknown.size:
        raise ValueError(f"{path} holds the labels {unknown[:5].tolist()}: expected 0 to {len(CLASSES) - 1}")
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.uint8))


def _read(path: Path, array: str) -> NDArray[Any]:
    """One array of a prepared scan; the others are not read."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return np.asarray(file[array])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read, delete it to have it prepared again: {error}") from error


def _cases(names: list[str], paths: dict[str, Path]) -> Stored:
    def read(index: int, array: str) -> Tensor:
        return torch.from_numpy(_read(paths[names[index]], array))

    return Stored(names, lambda index: read(index, "image")[None], lambda index: read(index, "label"))
