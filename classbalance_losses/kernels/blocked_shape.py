"""Stage 2 on a CPU, block by block: a function of each number alone, whose slope is found on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_ELEMENTS = 1 << 15  # for each thread: a dozen buffers of 128 KiB fit a core's cache


def pointwise(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``function(x)`` for a function of each entry alone; backward keeps the slope, and no intermediate."""
    value: Tensor = _Pointwise.apply(x, function)  # type: ignore[no-untyped-call]
    return value


class _Pointwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        value, slope = (torch.empty(x.shape, dtype=x.dtype) for _ in range(2))
        flat, flat_value, flat_slope = x.detach().reshape(-1), value.view(-1), slope.view(-1)
        step = _ELEMENTS * torch.get_num_threads()
        for start in range(0, flat.numel(), step):
            here = slice(start, start + step)
            with torch.enable_grad():
                leaf = flat[here].detach().requires_grad_()
                result = function(leaf)
            flat_value[here] = result.detach()
            flat_slope[here] = torch.autograd.grad(result, leaf, torch.ones_like(leaf))[0]
        ctx.save_for_backward(x, slope)
        ctx.function = function
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, slope = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return grad * slope, None
        (gradient,) = torch.autograd.grad(ctx.function(x), x, grad, create_graph=True)
        return gradient, None
