"""How loops and kernels become operators of torch's, whole in a compiled graph, and their gradient by the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_LIBRARY: Any = torch.library.Library("classbalance_losses", "FRAGMENT")  # type: ignore[no-untyped-call]


def define(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    keys: Sequence[str] = ("CPU",),
) -> Any:
    """Define an operator of this package by its schema, and return it; ``fake`` makes outputs of its shapes.

    It has no gradient of its own: what calls it is an autograd.Function, or constant. It returns new tensors, on a
    device of ``keys``.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    for key in keys:
        _LIBRARY.impl(name, implementation, key)
    torch.library.register_fake(f"classbalance_losses::{name}", fake)
    return getattr(torch.ops.classbalance_losses, name).default


def by_reference(
    function: Callable[[Tensor], Sequence[Tensor]], input: Tensor, grads: Sequence[Tensor | None]
) -> Tensor:
    """Return a gradient by functions of torch's: with a graph if one is wanted, and for any kind of ``grads``."""
    has_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        outputs = function(input)
    wanted = [grad for grad in grads if grad is not None]
    of_wanted = [output for output, grad in zip(outputs, grads, strict=True) if grad is not None]
    gradient: Tensor = torch.autograd.grad(of_wanted, input, wanted, create_graph=has_graph)[0]
    return gradient
