"""A folder of labels, counted: what the options and a ``dataset.json`` say of it, and what has to be asked."""

from __future__ import annotations

import argparse
import sys
from typing import NamedTuple

import torch

from classbalance_losses.state.accumulate import count_batches
from classbalance_losses.state.statistics import ClassStatistics
from classbalance_losses.stats.colors import Colours, read_colours
from classbalance_losses.stats.counting import BINARY, MULTICLASS, MULTILABEL, Rules, add_counts
from classbalance_losses.stats.errors import LabelFileError
from classbalance_losses.stats.files import Dataset, LabelFiles, counted_by, find_dataset, find_labels
from classbalance_losses.stats.reading import read_many

MOST_INFERRED = 256  # classes that 8 bits can tell apart


class Counted(NamedTuple):
    """The counts, and the names of the classes or of the labels."""

    statistics: ClassStatistics
    names: list[str]


def count_folder(options: argparse.Namespace) -> Counted:
    """Count the labels under a folder.

    Raises:
        LabelFileError: a file cannot be counted, or what its labels mean has to be said.
    """
    paths, dataset = find_labels(options.folder), find_dataset(options.folder)
    colours = read_colours(options.colors) if options.colors else None
    if dataset:
        print(f"Class names from {dataset.path}", file=sys.stderr)
    stated = options.ignore_index
    if stated is None and dataset:
        stated = dataset.ignore_index
    names = _names(options.task, dataset, colours)
    num_classes = _num_classes(options, names)
    if num_classes is None and options.task == MULTILABEL:
        num_classes = 2 * len(read_many(paths[0], options.key))
    rules = Rules(
        options.task,
        MOST_INFERRED if num_classes is None else num_classes,
        _ignored_label(stated, options, colours, num_classes),
        options.key,
        options.object,
        colours,
        options.ignore_unknown,
    )
    statistics = _counted(LabelFiles(paths, rules), options)
    _ask_about_ignored(statistics, rules, assumed=stated is None)
    if num_classes is None:
        _ask_about_object(statistics)
        statistics = trimmed(statistics)
        print(
            f"{statistics.num_classes} classes found; say --num-classes if there are more.", file=sys.stderr
        )
    return Counted(statistics, _completed(names, options.task, statistics.num_classes))


def _counted(files: LabelFiles, options: argparse.Namespace) -> ClassStatistics:
    statistics = ClassStatistics(files.rules.num_classes, ignore_index=files.rules.ignore_index)
    with counted_by(options.workers, files) as counts:
        count_batches(
            statistics,
            counts,
            add=add_counts,
            progress=True,
            checkpoint=options.checkpoint,
            source=files.describe(),
        )
    return statistics


def _names(task: str, dataset: Dataset | None, colours: Colours | None) -> list[str]:
    names = colours.names if colours else dataset.classes if dataset else []
    return names if task != BINARY or len(names) == 2 else []


def _completed(names: list[str], task: str, num_classes: int) -> list[str]:
    """Return a name for each class, or for each label that a pixel has or has not."""
    if task == BINARY:
        return names[1:] or ["positive"]
    number, word = (num_classes, "class") if task == MULTICLASS else (num_classes // 2, "label")
    return [names[index] if index < len(names) else f"{word} {index}" for index in range(number)]


def _num_classes(options: argparse.Namespace, names: list[str]) -> int | None:
    """Return the number of classes, two for each label of several; None if the files have to tell."""
    if options.task == BINARY:
        return 2
    stated: int | None = options.num_classes
    number = len(names) or None if stated is None else stated
    if options.task == MULTILABEL:
        return None if number is None else 2 * number
    return 2 if number is None and options.object is not None else number


def _ignored_label(
    stated: int | None, options: argparse.Namespace, colours: Colours | None, num_classes: int | None
) -> int:
    if stated is None:
        # No colour stands for a number, and of many classes 255 is one.
        is_one = options.task == MULTICLASS and (num_classes or 0) > 255
        return -100 if options.object == 255 or colours or is_one else 255
    if stated == options.object:
        raise LabelFileError(f"--object and --ignore-index are both {stated}. Leave one out.")
    return stated


def _ask_about_ignored(statistics: ClassStatistics, rules: Rules, *, assumed: bool) -> None:
    """Refuse masks of 0 and the ignored label, where nobody has said (``assumed``) that it is to be ignored."""
    seen = statistics.pixel_counts.nonzero().flatten().tolist()
    background = range(0, rules.num_classes, 2) if rules.task == MULTILABEL else [0]
    if not assumed or rules.colours or not set(seen) <= set(background) or not int(statistics.num_ignored):
        return
    label = statistics.ignore_index
    raise LabelFileError(
        f"The labels are {'0 and ' if seen else ''}{label} alone: is {label} the object, or to be left out? "
        f"If it is the object, say --object {label}; if it is to be left out, --ignore-index {label}."
    )


def _ask_about_object(statistics: ClassStatistics) -> None:
    """Refuse masks of 0 and another label, where nobody has said how many classes there are."""
    seen = statistics.pixel_counts.nonzero().flatten().tolist()
    if len(seen) == 2 and seen[0] == 0 and seen[1] > 1:
        raise LabelFileError(
            f"The labels are 0 and {seen[1]} alone: is {seen[1]} the object, or one of several classes? If it is the "
            f"object, say --object {seen[1]}; if it is one of several classes, --num-classes {seen[1] + 1}, or more."
        )


def trimmed(statistics: ClassStatistics) -> ClassStatistics:
    """Drop the classes after the last one that occurs."""
    classes = torch.arange(statistics.num_classes, dtype=torch.int64, device="cpu")
    last = int(torch.where(statistics.pixel_counts > 0, classes, 1).max())
    small = ClassStatistics(last + 1, ignore_index=statistics.ignore_index)
    for ours, theirs in zip(small.buffers(), statistics.buffers(), strict=True):
        ours.copy_(theirs[: last + 1] if theirs.ndim else theirs)
    return small
