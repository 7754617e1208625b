"""ACDC and CHAOS: folders of .npz volumes in the layout that `examples/common/acdc.py` reads.

Both are thin beside a patch of BTCV's: ACDC has 6 to 18 slices, this CHAOS 31 to 46. Choose a patch to match, as
(8, 96, 96) or (32, 96, 96); volumes that are thinner still are padded with background, see `batches.random_patch`.

All is split by patient, so that ACDC's two phases of a heart stay together. A seventh of the training patients, at
least one, are held out for validation (10 of ACDC's 70, 2 of CHAOS' 14); of the others a share is labelled. The
folder's own `val` is the test set. The lists lie in `KEPT/splits/KIND-NUMBER-seedSEED`, where NUMBER counts the
folder's training patients.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from examples.common.acdc import AcdcVolumes
from examples.synapse_ssl.data.config import DataConfig, Size
from examples.synapse_ssl.data.resample import resize_image, resize_label
from examples.synapse_ssl.data.splits import kept_labelled, kept_list, shuffled
from examples.synapse_ssl.data.task import Stored, Subset, Task

HELD_OUT = 1 / 7  # of the training patients, for validation


def folder_task(config: DataConfig, kept: Path) -> Task:
    """A folder of volumes as a task; see `load_task`.

    Raises:
        FileNotFoundError, ValueError: see `AcdcVolumes`; moreover fewer than two training patients, or a label file
            with an ignored voxel.
    """
    volumes = AcdcVolumes(config.folder, "train")
    patients = volumes.patients
    if len(patients) < 2:
        raise ValueError(
            f"{volumes.folder}/train has {len(patients)} patient: expected two or more, one for validation"
        )
    lists = kept / "splits" / f"{config.kind}-{len(patients)}-seed{config.split_seed}"
    held_out = shuffled(patients, config.split_seed)[-max(round(HELD_OUT * len(patients)), 1) :]
    validation = kept_list(lists / "validation.txt", sorted(held_out), patients)
    training = [patient for patient in patients if patient not in set(validation)]
    labelled = kept_labelled(lists, training, config.budget, config.split_seed)
    others = [patient for patient in training if patient not in set(labelled)]
    cases = _cases(volumes, config.size)
    return Task(
        volumes.classes,
        _of(labelled, volumes, cases),
        _of(others or training, volumes, cases),
        _of(validation, volumes, cases),
        _cases(AcdcVolumes(config.folder, "val"), config.size),
    )


def _of(patients: Collection[str], volumes: AcdcVolumes, cases: Stored) -> Subset:
    return Subset(cases, [volume.name for volume in volumes.volumes if volume.patient in set(patients)])


def _cases(volumes: AcdcVolumes, size: Size | None) -> Stored:
    for volume in volumes.volumes:
        if (volume.label >= volumes.num_classes).any():
            raise ValueError(
                f"{volumes.folder / volumes.split / volume.name}.npz has voxels with the label "
                f"{volumes.ignore_index}: expected a class for each voxel, 0 to {volumes.num_classes - 1}"
            )

    def image(index: int) -> Tensor:
        return resize_image(torch.from_numpy(volumes.volumes[index].image) / 255, size)[None]

    def label(index: int) -> Tensor:
        return resize_label(torch.from_numpy(volumes.volumes[index].label), size)

    return Stored([volume.name for volume in volumes.volumes], image, label)
