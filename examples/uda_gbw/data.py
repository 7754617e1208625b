"""Source and target of a run: domains, streams, and how frequent the source's classes are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from examples.common.sampling import Sampler, Shuffled
from examples.common.scenes.batches import Stream
from examples.common.scenes.config import DataConfig as AdaptationData
from examples.common.scenes.config import StreamConfig
from examples.common.scenes.sampling import SOURCE, UNLABELLED, RareClassSampler, class_counts
from examples.common.scenes.task import Task
from examples.common.scenes.task import load_task as load_adaptation


@dataclass(frozen=True)
class Classes:
    """The classes, and what the source holds of each: `counts` (images, C), pixels of each class in each image."""

    names: tuple[str, ...]
    counts: Tensor

    @property
    def pixels(self) -> Tensor:
        """Labelled pixels of each class, (C,) int64."""
        return self.counts.sum(0)

    @property
    def images(self) -> Tensor:
        """Images that contain each class, (C,) int64."""
        return (self.counts > 0).sum(0)


def load_task(config: StreamConfig, kept: Path) -> Task:
    """The task of a configuration; no image of its target is labelled. `kept` keeps what is computed once.

    Raises:
        FileNotFoundError: a data folder is missing or has another layout.
        ValueError: classes of source and target differ.
    """
    return load_adaptation(AdaptationData(**vars(config), budget=0), kept)


def source_classes(task: Task, config: StreamConfig, kept: Path) -> Classes:
    """Count the source's labels, once: `kept` keeps the counts."""
    height, width = task.source.image(0).shape[-2:]  # the streets have the target's size, whatever that is
    cache = kept / f"source_counts-{config.kind}-{height}x{width}.pt"
    counts = class_counts(task.source, len(task.classes), cache)
    return Classes(task.classes, counts)


def streams(task: Task, classes: Classes, config: StreamConfig, seed: int) -> dict[str, Stream]:
    """The labelled source, and the target, of which no label is ever read."""
    sampler: Sampler = Shuffled(len(task.source.names), seed, SOURCE)
    if config.rare_class_sampling:
        sampler = RareClassSampler(
            classes.counts,
            seed,
            SOURCE,
            temperature=config.rare_class_temperature,
            min_pixels=config.rare_class_min_pixels,
        )
    target = task.unlabelled
    others = Shuffled(len(target.names), seed, UNLABELLED)
    size, crop = config.batch_size, config.crop
    return {
        "source": Stream(SOURCE, task.source, sampler, size, crop, labelled=True),
        "target": Stream(UNLABELLED, target, others, size, crop, labelled=False),
    }
