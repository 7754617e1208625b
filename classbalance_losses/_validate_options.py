"""Checks of options: choices, flags, ranges, and the labels that are ignored."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch

from classbalance_losses import _validate_remedies as remedies
from classbalance_losses._distributed import GroupObject, ProcessGroup

LABELS_END = 1 << 63  # no tensor of labels has one beyond


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Check that an option is one of its values."""
    if value not in choices:
        raise ValueError(f"Expected {name} to be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_flag(name: str, value: object) -> None:
    """Check that an option is true or false: any text, "no" too, would count as true."""
    if not isinstance(value, bool):
        raise TypeError(f"Expected {name} to be a bool, got {value!r}. Pass {name}=True or {name}=False.")


def check_range(
    name: str,
    value: float,
    low: float,
    high: float = math.inf,
    *,
    open_low: bool = False,
) -> None:
    """Check ``low <= value <= high`` (``low < value`` with ``open_low``); NaN never passes.

    Raises:
        ValueError: if the value lies outside.
        TypeError: if it is not a number.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        number = f"{name}.item()" if name.isidentifier() else "its item()"
        one = f" Pass {number}." if getattr(value, "ndim", 1) == 0 else ""
        raise TypeError(f"Expected {name} to be a number, got {type(value).__name__}.{one}")
    if (low < value if open_low else low <= value) and value <= high:
        return
    bracket = "(" if open_low else "["
    raise ValueError(f"Expected {name} in {bracket}{low}, {high}], got {value}.")


def check_upsample(upsample: str | None, align_corners: bool) -> None:
    """Check the two options of the interpolation."""
    if upsample not in (None, "linear"):
        raise ValueError(
            f"Expected upsample to be one of 'linear', got {upsample!r}. In 2 or 3 axes it is bilinear or trilinear: "
            'pass upsample="linear".'
        )
    check_flag("align_corners", align_corners)
    if align_corners and upsample is None:
        raise ValueError('Expected upsample="linear" with align_corners=True, got upsample=None.')


def check_common(ignore_index: int | Sequence[int], reduction: str, process_group: ProcessGroup) -> None:
    """Check the three options that every loss has."""
    as_labels(ignore_index)
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    if isinstance(process_group, str):
        check_choice("process_group", process_group, ("world",))
    elif process_group is not None and not isinstance(process_group, GroupObject):
        raise TypeError(
            f"Expected process_group to be None, 'world' or a torch.distributed.ProcessGroup, got {process_group!r}. "
            'Pass process_group="world" for all ranks, or what torch.distributed.new_group(ranks) returns on its ranks.'
        )


def as_label(ignore_index: int, *, several: bool = False) -> int:
    """Return ``ignore_index`` as an int: an integer of numpy's, or a tensor of one, is one too.

    ``several`` says whether there might be more of them.

    Raises:
        TypeError: if it is no integer.
    """
    label = ignore_index if isinstance(ignore_index, int) else _as_int(ignore_index)
    if label is not None and not isinstance(label, bool) and -LABELS_END <= label < LABELS_END:
        return label
    raise TypeError(
        f"Expected ignore_index to be an int, got {ignore_index!r}. "
        f"{remedies.of_ignore_index(ignore_index, several=several)}"
    )


def _as_int(value: Any) -> int | None:
    try:
        return None if getattr(value, "dtype", None) == torch.bool else operator.index(value)
    except TypeError:
        return None


def as_labels(ignore_index: int | Sequence[int]) -> int | tuple[int, ...]:
    """Return ``ignore_index`` as `as_label` does, or several, of which there is one at least.

    Raises:
        TypeError: if it is neither.
    """
    if isinstance(ignore_index, (tuple, list)) and ignore_index:
        labels = tuple(dict.fromkeys(as_label(label, several=True) for label in ignore_index))
        return labels if len(labels) > 1 else labels[0]
    return as_label(ignore_index, several=True)  # type: ignore[arg-type]
