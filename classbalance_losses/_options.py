"""The options that all losses on logits share: their types and defaults stand here, and nowhere else."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypedDict, TypeVar, get_type_hints

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
    unknown = given.keys() - DEFAULTS.keys()
    if unknown:
        raise TypeError(
            f"got an unexpected keyword argument {min(unknown)!r}; the options that all losses share are "
            f"{', '.join(DEFAULTS)}."
        )
    return {**DEFAULTS, **given}


def shown_as(twin: Callable[..., Any], *without: str) -> Callable[[Function], Function]:
    """Decorate a function that passes its options on: its signature names those of another, but for some."""
    signature = inspect.signature(twin)
    parameters = [p for name, p in signature.parameters.items() if name not in without]

    def decorate(function: Function) -> Function:
        function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return function

    return decorate


def shows_options(function: Function) -> Function:
    """Decorate a function that takes ``**common: Unpack[Common]``: its signature names the options and defaults."""
    own = list(inspect.signature(function).parameters.values())[:-1]
    types = get_type_hints(Common)
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=types[name])
        for name, default in DEFAULTS.items()
    ]
    signature = inspect.signature(function)
    function.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
    return function
