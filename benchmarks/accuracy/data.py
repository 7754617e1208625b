"""The data of a grid: folders in the layout of CamVid or of ACDC, or streets rendered once and kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.accuracy.slices import Slices, held_out_patients
from classbalance_losses import ClassStatistics
from examples.common.acdc import AcdcVolumes
from examples.common.camvid import CamVid
from examples.common.stored import StoredImages
from examples.common.streets import Streets, render_street
from examples.common.training import write_atomically

RARE = 5  # classes, with the fewest training pixels
# Training images, test sets, classes, the ignored label.
_Described = tuple[StoredImages, dict[str, StoredImages], tuple[str, ...], int]
_KINDS = ("camvid", "acdc", "streets", "streets-to-camvid")


@dataclass(frozen=True)
class BenchmarkData:
    """A training set and the named sets that runs are scored on; the first of them is the main one."""

    train: StoredImages
    tests: Mapping[str, StoredImages]
    classes: tuple[str, ...]
    ignore_index: int
    pixel_counts: Tensor  # (C,), of the training set, on the CPU

    @property
    def task(self) -> str:
        """What the losses call it: of two classes the second is present or absent, which is one logit."""
        return "binary" if len(self.classes) == 2 else "multiclass"

    @property
    def structures(self) -> list[int]:
        """The classes whose Dice is the score, of data with a background; none of other data."""
        return list(range(1, len(self.classes))) if self.classes[0] == "background" else []

    @property
    def logits(self) -> int:
        """How many the model gives for a pixel."""
        return 1 if self.task == "binary" else len(self.classes)

    def to(self, device: torch.device) -> BenchmarkData:
        """The same with all images on a device."""
        tests = {name: test.to(device) for name, test in self.tests.items()}
        return replace(self, train=self.train.to(device), tests=tests)


def load_data(config: Mapping[str, Any], folder: Path | None, cache: Path) -> BenchmarkData:
    """The data that a grid's `[data]` table describes.

    Args:
        config: `kind = "camvid"` with the splits `train` and `tests`; `kind = "acdc"` with the same, and `side` and
            `scale` of the slices; `kind = "streets"` with `size` (H, W) and the numbers of images `train` and `test`;
            or `kind = "streets-to-camvid"`, streets for training, with the splits `tests` of the folder beside the
            held-out streets. With `held_out` = n one training image of n, the last of each n, is taken out of training
            and is the test set; of slices, all those of one patient of n. With `label_noise` = r a share r of the
            training pixels of the five rarest classes, of two classes the second, get another label, always the same.
            Of streets, with `dilute = { class = NAME, images = m, pool = n }` m of the `train` images have that
            class, and the others have not: the first such ones of n that are rendered.
        folder: where the folder is; streets alone need none.
        cache: a folder for rendered streets.

    Raises:
        ValueError: an unknown kind, or one that needs a folder without it.
    """
    kind = config["kind"]
    if kind not in _KINDS:
        raise ValueError(f"data.kind must be one of {_KINDS}, got {kind!r}")
    train, tests, classes, ignore_index = {"camvid": _camvid, "acdc": _acdc}.get(kind, _of_streets)(
        config, folder, cache
    )
    if "held_out" in config:
        train, tests = _held_out(train, config["held_out"])
    counts = _counts(train, len(classes), ignore_index)
    if "label_noise" in config:
        train = spoilt(train, config["label_noise"], counts)
        counts = _counts(train, len(classes), ignore_index)  # what somebody with such labels would count
    return BenchmarkData(train, tests, classes, ignore_index, counts)


def _camvid(config: Mapping[str, Any], folder: Path | None, _: Path) -> _Described:
    train = CamVid(_given(folder), config["train"])
    return train, _tests(_given(folder), config["tests"]), train.classes, train.ignore_index


def _acdc(config: Mapping[str, Any], folder: Path | None, _: Path) -> _Described:
    splits = {name: AcdcVolumes(_given(folder), name) for name in (config["train"], *config["tests"])}
    slices = {name: Slices(split, config["side"], config["scale"]) for name, split in splits.items()}
    of = splits[config["train"]]
    tests: dict[str, StoredImages] = {name: slices[name] for name in config["tests"]}
    return slices[config["train"]], tests, of.classes, of.ignore_index


def _of_streets(config: Mapping[str, Any], folder: Path | None, cache: Path) -> _Described:
    tests = {} if config["kind"] == "streets" else _tests(_given(folder), config["tests"])
    dilute = config.get("dilute", {})
    train = _streets(dilute.get("pool", config["train"]), config["size"], 0, cache)
    if dilute:
        train = diluted(train, Streets.classes.index(dilute["class"]), dilute["images"], config["train"])
    for name, test in tests.items():
        if isinstance(test, CamVid) and test.classes != Streets.classes:
            raise ValueError(
                f"{folder}, {name}: expected the classes of streets, {Streets.classes}, got {test.classes}"
            )
    tests["streets" if tests else "test"] = _streets(config["test"], config["size"], 1, cache)
    return train, tests, Streets.classes, Streets.ignore_index


def spoilt(data: StoredImages, share: float, counts: Tensor) -> StoredImages:
    """The images, where each pixel of a rare class has another class, any, with a probability."""
    draw, classes = torch.Generator().manual_seed(0), len(counts)
    rare = counts.argsort()[: min(RARE, classes - 1)]
    flipped = torch.isin(data.labels, rare) & (torch.rand(data.labels.shape, generator=draw) < share)
    other = data.labels + torch.randint(1, classes, data.labels.shape, generator=draw, dtype=torch.uint8)
    return StoredImages(data.images, torch.where(flipped, other % classes, data.labels))


def diluted(data: StoredImages, of: int, number: int, length: int) -> StoredImages:
    """As many images, of which a number has a class: the first with it and the first without, in their order.

    Raises:
        ValueError: there are too few of either.
    """
    has = (data.labels == of).flatten(1).any(1)
    taken = (has & (has.cumsum(0) <= number)) | (~has & ((~has).cumsum(0) <= length - number))
    if int((has & taken).sum()) < number or int(taken.sum()) < length:
        raise ValueError(
            f"{len(data)} images are too few: {int(has.sum())} have class {of}, of {length} {number} shall"
        )
    return StoredImages(data.images[taken], data.labels[taken])


def _counts(data: StoredImages, num_classes: int, ignore_index: int) -> Tensor:
    statistics = ClassStatistics(num_classes, ignore_index=ignore_index)
    for i in range(len(data)):
        statistics.update(data[i][1])
    return statistics.pixel_counts.clone()


def pixel_shares(counts: Tensor) -> list[float]:
    """Each class's share of the labelled pixels."""
    shares: list[float] = (counts.double() / counts.sum().clamp(min=1)).tolist()
    return shares


def _tests(folder: Path, names: list[str]) -> dict[str, StoredImages]:
    return {name: CamVid(folder, name) for name in names}


def _held_out(data: StoredImages, every: int) -> tuple[StoredImages, dict[str, StoredImages]]:
    is_out = torch.arange(len(data)) % every == every - 1
    if isinstance(data, Slices):
        is_out = held_out_patients(data.patients, every)
    train, test = (StoredImages(data.images[of], data.labels[of]) for of in (~is_out, is_out))
    return train, {"held out": test}


def _given(folder: Path | None) -> Path:
    if folder is None:
        raise ValueError("this grid needs --data FOLDER, a folder in the layout of its kind")
    return folder


def _streets(length: int, size: list[int], seed: int, cache: Path) -> StoredImages:
    """Streets from the cache, rendered into it first where they are not there yet."""
    path = cache / f"streets-{size[0]}x{size[1]}-{length}-seed{seed}.npz"
    if not path.exists():
        streets = Streets(length, size=(size[0], size[1]), seed=seed)
        bar = tqdm(range(length), desc="render streets", unit="image", disable=None)
        pairs = [render_street(streets.render_seed(i), streets.size) for i in bar]
        images, labels = (np.stack(part) for part in zip(*pairs, strict=True))

        def save(partial: Path) -> None:
            with partial.open("wb") as file:
                np.savez(file, images=images.transpose(0, 3, 1, 2), labels=labels)

        write_atomically(path, save)
    with np.load(path) as file:
        return StoredImages(torch.from_numpy(file["images"]), torch.from_numpy(file["labels"]))
