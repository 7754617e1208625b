"""Slices of volumes as images: cut or padded to one square about their centre, and made smaller."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from examples.common.acdc import AcdcVolumes, Volume
from examples.common.stored import StoredImages


class Slices(StoredImages):
    """All slices of a split, in the volumes' order: grey, three times, for networks that know photographs.

    Args:
        volumes: the split.
        side: of the square, in pixels; what it has beyond a slice is ignored.
        scale: so many pixels of a slice, in height and in width, become one: their mean, and the first one's label.
    """

    def __init__(self, volumes: AcdcVolumes, side: int, scale: int) -> None:
        squares = [_squares(volume, side, volumes.ignore_index) for volume in volumes.volumes]
        images, labels = (torch.cat(part) for part in zip(*squares, strict=True))
        small = F.avg_pool2d(images[:, None].float(), scale).round().byte()
        super().__init__(small.expand(-1, 3, -1, -1), labels[:, ::scale, ::scale].contiguous())
        self.patients = [volume.patient for volume in volumes.volumes for _ in volume.image]


def held_out_patients(patients: Sequence[str], every: int) -> Tensor:
    """Which slices (N,) are of one patient of so many, the last of each."""
    kept_back = set(sorted(set(patients))[every - 1 :: every])
    return torch.tensor([patient in kept_back for patient in patients])


def _squares(volume: Volume, side: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    depth, *size = volume.image.shape
    (to_rows, rows), (to_columns, columns) = (_centred(length, side) for length in size)
    image = np.zeros((depth, side, side), np.uint8)
    label = np.full_like(image, ignore_index)
    for square, slices in ((image, volume.image), (label, volume.label)):
        square[:, to_rows, to_columns] = slices[:, rows, columns]
    return torch.from_numpy(image), torch.from_numpy(label)


def _centred(length: int, side: int) -> tuple[slice, slice]:
    """Where a slice's middle goes in a square, and what of the slice it is."""
    both, into, of = min(length, side), max(side - length, 0) // 2, max(length - side, 0) // 2
    return slice(into, into + both), slice(of, of + both)
