"""A domain adaptation task: where source, target and test images come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from examples.common.camvid import CamVid
from examples.common.sampling import Sampler, Shuffled
from examples.common.scenes import labels, layouts
from examples.common.scenes.batches import Stream
from examples.common.scenes.config import DataConfig
from examples.common.scenes.domain import Domain, PairDomain, Size, Subset, select
from examples.common.scenes.sampling import (
    LABELLED,
    SOURCE,
    UNLABELLED,
    RareClassSampler,
    class_counts,
)
from examples.common.scenes.splits import split_file
from examples.common.stored import StoredImages
from examples.common.streets import CLASSES as STREET_CLASSES
from examples.common.streets import IGNORE_INDEX as STREET_IGNORE_INDEX
from examples.common.streets import Streets
from examples.common.training import write_atomically

_SCORED = {
    "gta5-cityscapes": (19,),
    "synthia-cityscapes": (16, 13),
}  # the numbers of classes that papers report

_NOTHING = PairDomain([], [])  # a source that is not used


@dataclass(frozen=True)
class Task:
    """Domains to train and test on; the source may be empty.

    `means` names the sets of classes that a mean IoU is taken over, the main first.
    """

    source: Domain
    target: Domain
    labelled: Sequence[str]
    tests: Mapping[str, Domain]
    classes: tuple[str, ...]
    means: Mapping[str, tuple[int, ...]]

    @property
    def unlabelled(self) -> Domain:
        """The target's other images. Where all are labelled, all of them, read without their labels."""
        known = set(self.labelled)
        others = [i for i, name in enumerate(self.target.names) if name not in known]
        return Subset(self.target, others or range(len(self.target.names)))


def load_task(config: DataConfig, folder: Path) -> Task:
    """The task of a configuration. `folder` keeps what is computed once: label splits, class counts, streets.

    Without `use_source` the source is empty, and no folder of it is needed: semi-supervised learning on the target.

    Raises:
        FileNotFoundError: a data folder is missing or has another layout.
        ValueError: no folder is named, the label budget exceeds the target's images, or classes of source and target
            differ.
    """
    _check_named("target", config.target, config.kind)
    if config.kind == "streets-camvid":
        return _streets_to_camvid(config, folder)
    source: Domain = _NOTHING
    if config.use_source:
        _check_named("source", config.source, config.kind)
        read_source = layouts.gta5 if config.kind == "gta5-cityscapes" else layouts.synthia
        source = read_source(config.source, config.source_size)
    target = layouts.cityscapes(config.target, "train", config.target_size)
    tests = {"val": layouts.cityscapes(config.target, "val", config.test_size, resize_labels=False)}
    return Task(
        source,
        target,
        _labelled(config, target, folder),
        tests,
        labels.CLASSES,
        {f"mIoU{number}": labels.SUBSETS[number] for number in _SCORED[config.kind]},
    )


def streams(
    task: Task, config: DataConfig, folder: Path, seed: int, *, unlabelled: bool, flip: bool = True
) -> dict[str, Stream]:
    """The streams that training reads, half of the images mirrored with `flip`; what is empty or off is left out."""
    chosen: dict[str, Stream] = {}

    def add(name: str, number: int, domain: Domain, *, rare: bool, labelled: bool) -> None:
        sampler: Sampler
        if rare:
            sampler = RareClassSampler(
                source_counts(task, config, folder),
                seed,
                number,
                temperature=config.rare_class_temperature,
                min_pixels=config.rare_class_min_pixels,
            )
        else:
            sampler = Shuffled(len(domain.names), seed, number)
        chosen[name] = Stream(number, domain, sampler, config.batch_size, config.crop, labelled, flip)

    if config.use_source:
        add("source", SOURCE, task.source, rare=config.rare_class_sampling, labelled=True)
    if task.labelled:
        add("labelled", LABELLED, select(task.target, task.labelled), rare=False, labelled=True)
    if unlabelled:
        add("unlabelled", UNLABELLED, task.unlabelled, rare=False, labelled=False)
    return chosen


def source_counts(task: Task, config: DataConfig, folder: Path) -> Tensor:
    """Pixels of each class in each image of the source, (images, C); counted once for all runs."""
    cache = folder / f"class_counts-{config.kind}-source-{_text(config.source_size)}.pt"
    return class_counts(task.source, len(task.classes), cache)


def _check_named(key: str, folder: str, kind: str) -> None:
    if not folder:
        raise ValueError(
            f"{kind} needs the folder of its {key}: --{key} FOLDER, or data.{key} in the configuration"
        )


def _labelled(config: DataConfig, target: Domain, folder: Path) -> tuple[str, ...]:
    """The labelled names; lists of our own are kept apart by target and seed, as their files would be the same."""
    target_name = f"camvid-{config.train_split}" if config.kind == "streets-camvid" else "cityscapes"
    own = folder / "splits" / f"{target_name}-seed{config.split_seed}"
    lists = Path(config.splits) if config.splits else own
    return split_file(lists, target.names, config.budget, config.split_seed)


def _text(size: Size | None) -> str:
    return "own" if size is None else f"{size[0]}x{size[1]}"


def _streets_to_camvid(config: DataConfig, folder: Path) -> Task:
    train = CamVid(config.target, config.train_split)
    tests = {name: CamVid(config.target, name) for name in config.test_splits}
    for split in (train, *tests.values()):
        if (split.classes, split.ignore_index) != (STREET_CLASSES, STREET_IGNORE_INDEX):
            raise ValueError(
                f"{split.folder}: expected the classes of streets, {STREET_CLASSES}, and {STREET_IGNORE_INDEX} "
                f"ignored, got {split.classes} and {split.ignore_index}"
            )
    target = PairDomain(train, train.stems)
    height, width = train[0][0].shape[-2:]
    return Task(
        _streets(config.streets, config.source_size or (height, width), folder)
        if config.use_source
        else _NOTHING,
        target,
        _labelled(config, target, folder),
        {name: PairDomain(test, test.stems) for name, test in tests.items()},
        STREET_CLASSES,
        {f"mIoU{len(STREET_CLASSES)}": tuple(range(len(STREET_CLASSES)))},
    )


def _streets(length: int, size: Size, folder: Path) -> Domain:
    """Streets of seed 0, rendered once."""
    path = folder / f"streets-{size[0]}x{size[1]}-{length}.npz"
    if not path.is_file():
        pairs = list(map(Streets(length, size=size, cache=False).__getitem__, range(length)))
        images = torch.stack([image.mul(255).round().byte() for image, _ in pairs]).numpy()
        label = torch.stack([label.byte() for _, label in pairs]).numpy()

        def save(partial: Path) -> None:
            with partial.open("wb") as file:
                np.savez(file, images=images, labels=label)

        write_atomically(path, save)
    with np.load(path) as file:
        data = StoredImages(torch.from_numpy(file["images"]), torch.from_numpy(file["labels"]))
    return PairDomain(data, [f"street_{i:06d}" for i in range(length)])
