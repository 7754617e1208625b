"""From a label file to the counts of its classes, by the rules that the options give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from classbalance_losses._validate import check_target_range
from classbalance_losses.state.statistics import ClassStatistics
from classbalance_losses.stats.colors import Colours, count_by_colours
from classbalance_losses.stats.errors import LabelFileError
from classbalance_losses.stats.histogram import Array, Counts, count_values
from classbalance_losses.stats.reading import read, read_many

MULTICLASS, BINARY, MULTILABEL = TASKS = ("multiclass", "binary", "multilabel")


class FileCounts(NamedTuple):
    """The pixels of each class, and how many are ignored."""

    pixels: Array
    ignored: int


@dataclass(frozen=True)
class Rules:
    """How the values of a file become classes.

    Of several labels a pixel each is counted as two classes: 2l where label l is not, 2l + 1 where it is.
    """

    task: str
    num_classes: int
    ignore_index: int
    key: str = "label"
    object_label: int | None = None
    colours: Colours | None = None
    ignore_unknown: bool = False

    def count(self, path: Path) -> FileCounts:
        """Count a file, as one image or volume.

        Raises:
            LabelFileError: the file cannot be read, or has labels that are no classes.
            ModuleNotFoundError: Pillow is not installed.
        """
        if self.task == MULTILABEL:
            return self._labels(path)
        if self.colours is not None:
            counts = count_by_colours(path, self.colours, self.ignore_index, self.ignore_unknown)
            return self._classes(path, counts)
        labels = read(path, self.key)
        counts = count_values(labels)
        if self.task == MULTICLASS and self.object_label is None:
            self._check(path, labels, counts)
        return self._classes(path, counts)

    def _check(self, path: Path, labels: Array, counts: Counts) -> None:
        """Check the range of the labels; only where some are outside are all looked at, to tell what they are."""
        (values, _), _ = self._kept(counts)
        if not ((values < 0) | (values >= self.num_classes)).any():
            return
        try:
            target = torch.from_numpy(labels.astype(np.int64)).unsqueeze(0)
            check_target_range(target, self.num_classes, self.ignore_index)
        except IndexError as error:
            raise LabelFileError(
                f"{path}: {error} Set --num-classes or --ignore-index accordingly, or --object to the object's "
                "label in masks of two labels."
            ) from error

    def _labels(self, path: Path) -> FileCounts:
        """Return the pixels without and with each label, one after the other, and the ignored ones of all labels."""
        masks = read_many(path, self.key)
        if 2 * len(masks) != self.num_classes:
            raise LabelFileError(
                f"{path}: expected {self.num_classes // 2} labels, got {len(masks)}. Every file needs as many, "
                "on the first axis of an array (numpy.moveaxis(array, -1, 0) brings the last there) or the last of a "
                f".nii file; if {len(masks)} are right, say --num-classes {len(masks)}."
            )
        parts = [self._binary(path, count_values(mask)) for mask in masks]
        return FileCounts(
            np.concatenate([part.pixels for part in parts]), sum(part.ignored for part in parts)
        )

    def _classes(self, path: Path, counts: Counts) -> FileCounts:
        """Return the pixels of each class, and how many are ignored."""
        if self.task == BINARY or self.object_label is not None:
            pixels, ignored = self._binary(path, counts)
            return FileCounts(np.pad(pixels, (0, self.num_classes - 2)), ignored)
        kept, ignored = self._kept(counts)
        pixels = np.zeros(self.num_classes, dtype=np.int64)
        pixels[kept.values] = kept.numbers
        return FileCounts(pixels, ignored)

    def _binary(self, path: Path, counts: Counts) -> FileCounts:
        """Return the pixels of 0 and of the object, and how many are ignored."""
        (values, numbers), ignored = self._kept(counts)
        member = 1 if self.object_label is None else self.object_label
        others = values[(values != 0) & (values != member)]
        if others.size:
            raise LabelFileError(f"{path}: {self._of_third_label(int(others[0]), bool((values == 1).any()))}")
        positive = int(numbers[values == member].sum())
        return FileCounts(np.array([numbers.sum() - positive, positive]), ignored)

    def _kept(self, counts: Counts) -> tuple[Counts, int]:
        """Take the ignored label out; return the others, and how many pixels it has."""
        ignored = counts.values == self.ignore_index
        return Counts(counts.values[~ignored], counts.numbers[~ignored]), int(counts.numbers[ignored].sum())

    def _of_third_label(self, label: int, has_ones: bool) -> str:
        if self.object_label is not None:
            return (
                f"expected 0 and the object's label {self.object_label} alone, got {label} too. Leave --object out, "
                "or count masks with hard edges."
            )
        remedy = (
            f"If they are classes, leave --task {self.task} out"
            if has_ones
            else f"If {label} is the object, say --object {label}"
        )
        return f"expected 0 and 1, got {label}. {remedy}; if it is to be left out, --ignore-index {label}."


def add_counts(statistics: ClassStatistics, counts: FileCounts) -> None:
    """Add what ``ClassStatistics.update`` would count in one image, without tensors made for each."""
    total, there = int(counts.pixels.sum()), counts.pixels > 0
    for name, number in (
        ("pixel_counts", counts.pixels),
        ("image_counts", there),
        ("image_pixel_counts", there * total),
        ("num_images", 1),
        ("num_pixels", total),
        ("num_ignored", counts.ignored),
    ):
        buffer = getattr(statistics, name).numpy()
        buffer += number
