"""Which target images are labelled: nested, seeded lists, kept in files.

FOLDER/labelled_100.txt ... one image name a line. The list of 100 is the beginning of the list of 200, and so on, so
that a larger budget never loses a label. The order is one seeded shuffle of the sorted names.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from examples.common.training import write_atomically

SEED = 42  # of the shuffle, as in the released code


def nested_split(names: Sequence[str], budget: int, seed: int = SEED) -> tuple[str, ...]:
    """The first `budget` names of a seeded shuffle.

    Raises:
        ValueError: a negative budget, or more labels than images.
    """
    if not 0 <= budget <= len(names):
        raise ValueError(
            f"the label budget must be between 0 and {len(names)}, the number of images, got {budget}"
        )
    order = sorted(names)
    random.Random(seed).shuffle(order)
    return tuple(order[:budget])


def split_file(folder: Path, names: Sequence[str], budget: int, seed: int = SEED) -> tuple[str, ...]:
    """The labelled names of a budget, from `FOLDER/labelled_BUDGET.txt`; the file is written where it is missing.

    Raises:
        ValueError: see `nested_split`; or the file's list is not one of `budget` of these names.
    """
    path = folder / f"labelled_{budget}.txt"
    if not path.is_file():
        chosen = nested_split(names, budget, seed)
        write_atomically(path, lambda partial: partial.write_text("".join(f"{name}\n" for name in chosen)))
    listed = tuple(path.read_text().split())
    if len(set(listed)) != budget or not set(listed) <= set(names):
        raise ValueError(
            f"{path} must list {budget} different images of the target, got {len(listed)} names of which "
            f"{len(set(listed) - set(names))} are unknown: delete it to have it written again"
        )
    return listed
