"""The options that all losses on logits share: their types and defaults stand here, and nowhere else."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, TypeVar, cast, get_type_hints

from classbalance_losses._distributed import ProcessGroup

Function = TypeVar("Function", bound=Callable[..., Any])


class Common(TypedDict, total=False):
    """The options of every loss on logits: see `DEFAULTS`."""

    task: str
    upsample: str | None
    align_corners: bool
    ignore_index: int | Sequence[int]
    reduction: str
    process_group: ProcessGroup


DEFAULTS: Common = {
    "task": "multiclass",
    "upsample": None,
    "align_corners": False,
    "ignore_index": -100,
    "reduction": "mean",
    "process_group": None,
}


def completed(given: Common) -> Common:
    """Return the options with defaults for those that are not given.

    Raises:
        TypeError: for one that there is not.
    """
    unknown = [name for name in given if name not in DEFAULTS]
    if unknown:
        raise TypeError(
            f"got an unexpected keyword argument {min(unknown)!r}; the options that all losses share are "
            f"{', '.join(DEFAULTS)}."
        )
    return {**DEFAULTS, **given}


def shows(types: type, defaults: Mapping[str, object], *without: str) -> Callable[[Function], Function]:
    """Decorate a function that ends in ``**options: Unpack[types]``: its signature names them, with their defaults."""
    hints = get_type_hints(types)
    shown = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[name])
        for name, default in defaults.items()
        if name not in without
    ]

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        own = list(signature.parameters.values())[:-1]
        function.__signature__ = signature.replace(parameters=[*own, *shown])  # type: ignore[attr-defined]
        return function

    return decorate


def shows_options(function: Function) -> Function:
    """Decorate a function that takes ``**common: Unpack[Common]``: its signature names the options and defaults."""
    return shows(Common, cast("Mapping[str, object]", DEFAULTS))(function)
