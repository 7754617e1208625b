"""A semi-supervised task: which images are labelled, which are not, and what is scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from examples.common.camvid import CamVid
from examples.common.sampling import Shuffled
from examples.common.scenes import labels, layouts
from examples.common.scenes.batches import Stream
from examples.common.scenes.domain import Domain, PairDomain, Subset, select
from examples.common.scenes.splits import split_file
from examples.hvl.config import DataConfig
from examples.hvl.data import voc

LABELLED, UNLABELLED = 1, 2  # the streams of random numbers that crops and orders come from


@dataclass(frozen=True)
class Task:
    """Domains to train and test on. `means` names the sets of classes that a mean IoU is taken over."""

    labelled: Domain
    unlabelled: Domain
    tests: Mapping[str, Domain]
    classes: tuple[str, ...]

    @property
    def means(self) -> Mapping[str, tuple[int, ...]]:
        """All classes, as the papers score them."""
        return {f"mIoU{len(self.classes)}": tuple(range(len(self.classes)))}


def load_task(config: DataConfig, kept: Path) -> Task:
    """The task of a configuration; `kept` is where label lists of our own are kept.

    Raises:
        FileNotFoundError: a folder or list is missing or has another layout.
        ValueError: the label budget exceeds the images, or a split is not one of this data.
    """
    train, tests, classes = _domains(config)
    if config.splits:
        labelled, unlabelled = voc.read_split(Path(config.splits), train.names)
    else:
        own = kept / "splits" / f"{config.kind}-{config.train_split}-seed{config.split_seed}"
        labelled = split_file(own, train.names, config.budget, config.split_seed)
        unlabelled = tuple(name for name in train.names if name not in {*labelled})
    # Where everything is labelled, the unlabelled stream reads the same images without their labels.
    return Task(select(train, labelled), _others(train, unlabelled), tests, classes)


def streams(task: Task, config: DataConfig, seed: int) -> dict[str, Stream]:
    """The two streams that training reads; the unlabelled one never reads a label."""

    def stream(number: int, domain: Domain, *, labelled: bool) -> Stream:
        order = Shuffled(len(domain.names), seed, number)
        return Stream(number, domain, order, config.batch_size, config.crop, labelled)

    return {
        "labelled": stream(LABELLED, task.labelled, labelled=True),
        "unlabelled": stream(UNLABELLED, task.unlabelled, labelled=False),
    }


def _others(train: Domain, unlabelled: tuple[str, ...]) -> Domain:
    return select(train, unlabelled) if unlabelled else Subset(train, range(len(train.names)))


def _domains(config: DataConfig) -> tuple[Domain, dict[str, Domain], tuple[str, ...]]:
    tests: dict[str, Domain]
    if config.kind == "camvid":
        train = CamVid(config.folder, config.train_split)
        tests = {}
        for name in config.test_splits:
            test = CamVid(config.folder, name)
            tests[name] = PairDomain(test, test.stems)
        return PairDomain(train, train.stems), tests, train.classes
    if config.kind == "cityscapes":
        tests = {
            name: layouts.cityscapes(config.folder, name, config.test_size) for name in config.test_splits
        }
        return (
            layouts.cityscapes(config.folder, config.train_split, config.size),
            tests,
            labels.CLASSES,
        )
    tests = {name: voc.pascal_voc(config.folder, name, config.test_size) for name in config.test_splits}
    return voc.pascal_voc(config.folder, config.train_split, config.size), tests, voc.CLASSES
