"""Label splits in the form that semi-supervised segmentation publishes them.

SPLITS/92/labeled.txt, SPLITS/92/unlabeled.txt    one image a line: a name, or "IMAGE-PATH LABEL-PATH"

SemiVL publishes all that the paper uses: pascal/92, coco/1_512, ade/1_128, cityscapes/1_30 and so on, those but for ade
after UniMatch. The paths in them belong to its own copies of the data; here a line stands for the image of that name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def read_names(path: Path) -> tuple[str, ...]:
    """The image names of a list: the stem of each line's first word, without Cityscapes' `_leftImg8bit`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the list is empty, or names an image twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"list of images not found: {path} (one image a line)")
    lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    names = tuple(Path(words[0]).stem.removesuffix("_leftImg8bit") for words in lines)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{path} must list different images, one a line, got {len(names)} lines")
    return names


def without(names: Sequence[str], labelled: Sequence[str]) -> tuple[str, ...]:
    """The names that are not labelled, in their order."""
    known = set(labelled)
    return tuple(name for name in names if name not in known)


def read_split(folder: Path, names: Sequence[str], budget: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The labelled and the unlabelled names of a published split; without unlabeled.txt, all others are unlabelled.

    Raises:
        FileNotFoundError: there is no labeled.txt.
        ValueError: it is the split of another budget, a list names an image that the data does not have, or one image
            is in both lists.
    """
    labelled = read_names(folder / "labeled.txt")
    if len(labelled) != budget:
        raise ValueError(
            f"{folder} labels {len(labelled)} images and data.budget is {budget}: "
            "data.split names the subfolder of a budget"
        )
    known, rest = set(names), folder / "unlabeled.txt"
    unlabelled = read_names(rest) if rest.is_file() else without(names, labelled)
    for listed in (labelled, unlabelled):
        if unknown := [name for name in listed if name not in known]:
            raise ValueError(f"{folder} lists {unknown[:3]}, which the data does not have: is it another's?")
    if both := sorted({*labelled} & {*unlabelled}):
        raise ValueError(f"{folder} lists {both[:3]} as labelled and as unlabelled")
    return labelled, unlabelled
