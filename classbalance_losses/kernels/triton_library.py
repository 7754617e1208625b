"""How the kernels become operators of torch's: cheaper to call than custom_op's, and whole in a compiled graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY: Any = torch.library.Library("classbalance_losses", "FRAGMENT")  # type: ignore[no-untyped-call]


def define(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define an operator of this package by its schema; ``fake`` makes outputs of its shapes.

    It has no gradient of its own: what calls it is an autograd.Function, or constant.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    for key in ("CPU", "CUDA"):  # on the CPU kernels are interpreted
        _LIBRARY.impl(name, implementation, key)
    torch.library.register_fake(f"classbalance_losses::{name}", fake)
