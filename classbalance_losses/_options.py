"""The options that all losses on logits share: their types and defaults stand here, and nowhere else."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
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


def completed(given: Common, kind: type | None = None) -> Common:
    """Return the options with defaults for those that are not given; a module says its ``kind``.

    Raises:
        TypeError: for one that there is not.
    """
    unknown = [name for name in given if name not in DEFAULTS]
    if unknown:
        raise TypeError(_of_unknown(min(unknown), kind))
    return {**DEFAULTS, **given}


def _of_unknown(name: str, kind: type | None) -> str:
    shared = f"the options that all losses share are {', '.join(DEFAULTS)}."
    if kind is None:
        return f"got an unexpected keyword argument {name!r}; {shared}"
    own = [option for option in inspect.signature(kind).parameters if option not in DEFAULTS]
    near = get_close_matches(name, [*own, *DEFAULTS], 1)
    meant = f" Did you mean {near[0]}?" if near else ""
    return (
        f"{kind.__name__} got an unexpected keyword argument {name!r}.{meant} "
        f"Its own options are {', '.join(own)}; {shared}"
    )


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
