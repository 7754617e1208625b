"""A semi-supervised task: which images are labelled, which are not, and what is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from examples.common.camvid import CamVid
from examples.common.sampling import Sampler, Shuffled
from examples.common.scenes import labels, layouts
from examples.common.scenes.batches import Stream
from examples.common.scenes.domain import Domain, PairDomain, Size, Subset, select
from examples.common.scenes.sampling import RareClassSampler, class_counts
from examples.common.scenes.splits import split_file
from examples.hvl.config import DataConfig
from examples.hvl.data.ade20k import CLASSES as ADE20K_CLASSES
from examples.hvl.data.ade20k import ade20k
from examples.hvl.data.augment import WeakView
from examples.hvl.data.coco import CLASSES as COCO_CLASSES
from examples.hvl.data.coco import coco
from examples.hvl.data.splits import read_names, read_split, without
from examples.hvl.data.voc import CLASSES as VOC_CLASSES
from examples.hvl.data.voc import pascal_voc

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
        ValueError: the label budget exceeds the images, or is not that of the split; the split is of other data; or one
            of the split and its folder is named alone.
    """
    _check_split(config)
    train, tests, classes = _domains(config)
    if config.split:
        labelled, unlabelled = read_split(Path(config.splits, config.split), train.names, config.budget)
    else:
        own = kept / "splits" / f"{config.kind}-{config.train_split}-seed{config.split_seed}"
        labelled = split_file(own, train.names, config.budget, config.split_seed)
        unlabelled = without(train.names, labelled)
    # Where everything is labelled, the unlabelled stream reads the same images without their labels.
    return Task(select(train, labelled), _others(train, unlabelled), tests, classes)


def streams(task: Task, config: DataConfig, seed: int, kept: Path | None = None) -> dict[str, Stream]:
    """The two streams that training reads; the unlabelled one never reads a label.

    Colours are changed in the labelled one alone: unlabelled images are seen as they are, and in strong views.

    Args:
        task: the images.
        config: how they are drawn and cut.
        seed: of all draws.
        kept: where the pixels of each class are kept, which rare-class sampling draws by; None counts them anew.
    """

    def stream(number: int, domain: Domain, sampler: Sampler, *, labelled: bool) -> Stream:
        view = WeakView(config.scale, config.jitter if labelled else 0.0)
        return Stream(number, domain, sampler, config.batch_size, config.crop, labelled, augment=view)

    others = Shuffled(len(task.unlabelled.names), seed, UNLABELLED)
    return {
        "labelled": stream(
            LABELLED, task.labelled, _labelled_sampler(task, config, seed, kept), labelled=True
        ),
        "unlabelled": stream(UNLABELLED, task.unlabelled, others, labelled=False),
    }


def _labelled_sampler(task: Task, config: DataConfig, seed: int, kept: Path | None) -> Sampler:
    if not config.rare_class_sampling:
        return Shuffled(len(task.labelled.names), seed, LABELLED)
    size = "own" if config.size is None else f"{config.size[0]}x{config.size[1]}"
    cache = kept / f"class_counts-{config.kind}-{len(task.labelled.names)}-{size}.pt" if kept else None
    counts = class_counts(task.labelled, len(task.classes), cache)
    return RareClassSampler(counts, seed, LABELLED, temperature=config.rare_class_temperature)


def _check_split(config: DataConfig) -> None:
    if config.split and not config.splits:
        raise ValueError(
            f"data.split is {config.split!r}, a subfolder of the data set's published splits: name their folder, "
            '--splits FOLDER, or set data.split to "" for a shuffle of our own'
        )
    if config.splits and not config.split:
        raise ValueError(
            f"--splits is {config.splits} and data.split is empty: name its subfolder with labeled.txt"
        )


def _others(train: Domain, unlabelled: tuple[str, ...]) -> Domain:
    return select(train, unlabelled) if unlabelled else Subset(train, range(len(train.names)))


def _domains(config: DataConfig) -> tuple[Domain, dict[str, Domain], tuple[str, ...]]:
    """What is trained on, what is scored, and the classes."""
    folder, size = config.folder, config.size
    if config.kind == "camvid":
        train = CamVid(folder, config.train_split)
        return PairDomain(train, train.stems), _tests(config, _camvid), train.classes
    if config.kind == "cityscapes":
        data = layouts.cityscapes(folder, config.train_split, size)
        return data, _tests(config, layouts.cityscapes), labels.CLASSES
    if config.kind == "coco":
        return coco(folder, config.train_split, size), _tests(config, coco), COCO_CLASSES
    if config.kind == "ade20k":
        return ade20k(folder, config.train_split, size), _tests(config, ade20k), ADE20K_CLASSES
    data = pascal_voc(folder, config.train_split, size, _listed(config))
    return data, _tests(config, pascal_voc), VOC_CLASSES


def _tests(config: DataConfig, read: Callable[[str, str, Size | None], Domain]) -> dict[str, Domain]:
    return {name: read(config.folder, name, config.test_size) for name in config.test_splits}


def _camvid(folder: str, split: str, size: Size | None) -> Domain:
    """CamVid's files at their own size."""
    data = CamVid(folder, split)
    return PairDomain(data, data.stems)


def _listed(config: DataConfig) -> tuple[str, ...] | None:
    """The images of both lists of a published split, where it has both: `trainaug.txt` is no file of VOC's own."""
    files = [Path(config.splits, config.split, name) for name in ("labeled.txt", "unlabeled.txt")]
    if not config.split or not all(file.is_file() for file in files):
        return None
    return tuple(sorted({name for file in files for name in read_names(file)}))
