"""Which training patients are labelled: nested, seeded lists, kept in files.

`FOLDER/labelled_0.2.txt` has one patient a line. A smaller budget's list is the beginning of a larger one's, so that a
larger budget never loses a label.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from examples.common.training import write_atomically


def read_list(path: Path) -> tuple[str, ...]:
    """The names in a list file, one a line."""
    return tuple(path.read_text().split())


def shuffled(names: Sequence[str], seed: int) -> list[str]:
    """The names in a seeded order that does not depend on the order they come in."""
    order = sorted(names)
    random.Random(seed).shuffle(order)
    return order


def labelled_patients(
    patients: Sequence[str], budget: float, seed: int, first: Sequence[str] = ()
) -> tuple[str, ...]:
    """The labelled ones among training patients: round(budget · number), at least one.

    Args:
        patients: all training patients.
        budget: the labelled share, in (0, 1].
        seed: of the order; lists of one seed are nested.
        first: patients that come before all others, in a seeded order too: a published list.
    """
    order = shuffled(first, seed) + shuffled([name for name in patients if name not in set(first)], seed)
    return tuple(order[: max(round(budget * len(order)), 1)])


def kept_labelled(
    folder: Path, patients: Sequence[str], budget: float, seed: int, first: Sequence[str] = ()
) -> tuple[str, ...]:
    """`labelled_patients` from `FOLDER/labelled_BUDGET.txt`, which is written where it is missing.

    Raises:
        ValueError: the file lists no patient, one twice, or one that is not among these.
    """
    path = folder / f"labelled_{budget:g}.txt"
    if not path.is_file():
        chosen = labelled_patients(patients, budget, seed, first)
        write_atomically(path, lambda partial: partial.write_text("".join(f"{name}\n" for name in chosen)))
    listed = read_list(path)
    unknown = set(listed) - set(patients)
    if not listed or unknown or len(set(listed)) != len(listed):
        raise ValueError(
            f"{path} must list one or more different training patients, got {len(listed)} names of which "
            f"{len(unknown)} are unknown: delete it to have it written again"
        )
    return listed
