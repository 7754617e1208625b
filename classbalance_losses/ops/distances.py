"""Distances of all pairs of vectors on a CPU, without their differences in memory: torch's own kernels for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from classbalance_losses.kernels.operators import by_reference
from classbalance_losses.kernels.plain import needs_reference


def distances(vectors: Tensor, reference: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the distance of each pair of vectors (V, D), (V·(V−1)/2,); its gradient at 0 is 0.

    ``reference`` is the same function with a graph, for a backward of the backward, which torch's has not.
    """
    value: Tensor = _Distances.apply(vectors, reference)  # type: ignore[no-untyped-call]
    return value


class _Distances(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, reference: Callable[[Tensor], Tensor]) -> Tensor:
        vectors = vectors.contiguous()
        value: Tensor = torch.ops.aten._pdist_forward(vectors, 2.0)
        ctx.save_for_backward(vectors, value)
        ctx.reference = reference
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        vectors, value = ctx.saved_tensors
        if needs_reference(grad):
            return by_reference(lambda vectors: (ctx.reference(vectors),), vectors, (grad,)), None
        gradient: Tensor = torch.ops.aten._pdist_backward(grad.contiguous(), vectors, 2.0, value)
        return gradient, None
