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
    others = [name for name in patients if name not in set(first)]
    order = shuffled(first, seed) + shuffled(others, seed)
    return tuple(order[: max(round(budget * len(order)), 1)])


def kept_labelled(
    folder: Path, patients: Sequence[str], budget: float, seed: int, first: Sequence[str] = ()
) -> tuple[str, ...]:
    """`labelled_patients`, from `FOLDER/labelled_BUDGET.txt` where that exists; see `kept_list`."""
    chosen = labelled_patients(patients, budget, seed, first)
    return kept_list(folder / f"labelled_{budget:g}.txt", chosen, patients)


def kept_list(path: Path, chosen: Sequence[str], patients: Sequence[str]) -> tuple[str, ...]:
    """The patients listed in a file, which is written with the chosen ones where it is missing.

    Raises:
        ValueError: the file lists no patient, one twice, or one that is not among `patients`.
    """
    if not path.is_file():
        write_atomically(path, lambda partial: partial.write_text("".join(f"{name}\n" for name in chosen)))
    listed = read_list(path)
    unknown = sorted(set(listed) - set(patients))
    if not listed or unknown or len(set(listed)) != len(listed):
        raise ValueError(
            f"{path} must list one or more different training patients, got {len(listed)} names, of which "
            f"{len(set(listed))} are different and {unknown[:5]} unknown: delete it to have it written again"
        )
    return listed
