"""Forward and backward of every per-pixel loss beside `F.cross_entropy`, on the CPU, grouped by shape.

pytest-benchmark prints each group's times with the ratio to the fastest in brackets. The losses are the plain PyTorch
reference: no kernels yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import classbalance_losses
from classbalance_losses import PixelFrequency, WeightedCrossEntropyLoss

SHAPES = ((4, 19, 256, 256), (1, 14, 32, 96, 96), (8, 11, 180, 240))
IGNORE_INDEX = 255
PER_PIXEL = [
    name for name in classbalance_losses.__all__ if name.endswith("Loss") and name != "PullLoss"
]  # the pull loss works on features, not on pixels


def criteria() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Every contender by name: `F.cross_entropy`, then each public per-pixel loss as it comes."""
    losses: dict[str, nn.Module] = {
        name: getattr(classbalance_losses, name)(ignore_index=IGNORE_INDEX) for name in PER_PIXEL
    }
    losses["WeightedCrossEntropyLoss, PixelFrequency"] = WeightedCrossEntropyLoss(
        PixelFrequency(), ignore_index=IGNORE_INDEX
    )

    def cross_entropy(input: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(input, target, ignore_index=IGNORE_INDEX)

    return {"F.cross_entropy": cross_entropy, **losses}


@pytest.mark.parametrize("name", criteria())
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def bench_forward_backward(benchmark: Any, shape: tuple[int, ...], name: str) -> None:
    benchmark.group = f"{tuple(shape)} float32, {torch.get_num_threads()} threads, forward + backward"
    generator = torch.Generator().manual_seed(0)
    input = (2 * torch.randn(shape, generator=generator)).requires_grad_()
    target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.04] = IGNORE_INDEX
    criterion = criteria()[name]

    def step() -> Tensor:
        input.grad = None
        loss = criterion(input, target)
        loss.backward()
        return loss

    assert torch.isfinite(benchmark.pedantic(step, rounds=7, warmup_rounds=2))
