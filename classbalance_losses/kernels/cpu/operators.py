"""How loops become operators of torch's, which stay whole in a compiled graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY: Any = torch.library.Library("classbalance_losses", "FRAGMENT")  # type: ignore[no-untyped-call]


def define(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define an operator of this package by its schema, and return it; ``fake`` makes outputs of its shapes.

    It has no gradient of its own: what calls it is an autograd.Function, or constant. It returns new tensors.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, implementation, "CPU")
    torch.library.register_fake(f"classbalance_losses::{name}", fake)
    return getattr(torch.ops.classbalance_losses, name)
