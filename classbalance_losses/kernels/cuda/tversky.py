r"""Tversky's losses of a row's classes on CUDA, their weighted sum and its slopes, in one kernel.

With :math:`u_c = w_c\, \gamma (1 - T_c)^{\gamma - 1} / (U_c + s)` the slopes are :math:`\alpha u_c T_c` in P and
:math:`u_c ((1 - \alpha - \beta) T_c - 1)` in I. They are written on the way, so that backward is one product.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from classbalance_losses.kernels import tversky
from classbalance_losses.kernels.cuda.class_kernels import add_up
from classbalance_losses.kernels.cuda.common import Launch, define
from classbalance_losses.kernels.operators import by_reference
from classbalance_losses.kernels.plain import needs_reference

_BLOCK = 256  # classes at once, at most
_TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


def mean_missed(
    probability: Tensor,
    own: Tensor,
    number: Tensor,
    weight: Tensor,
    index: tversky.Index,
    *,
    mean: bool = True,
) -> Tensor:
    r"""Return :math:`\sum_c w_c (1 - T_c)^\gamma` of each row (R,), over :math:`\sum_c w_c` if asked.

    Args:
        probability: float32 (R, C), as are all of these.
        own: I.
        number: n, constant; also as whole numbers.
        weight: w, constant.
        index: α, β, γ and s.
        mean: Whether to divide.
    """
    numbers = [float(of_index) for of_index in index]
    losses: Tensor = _MeanMissed.apply(probability, own, number, weight, numbers, mean)
    return losses


class _MeanMissed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        *sums, numbers, mean = given
        found: tuple[Tensor, Tensor] = _FORWARD(*sums, numbers, mean)
        losses, slopes = found
        ctx.save_for_backward(*sums, slopes)
        ctx.how = numbers, mean
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        probability, own, number, weight, slopes = ctx.saved_tensors
        if not needs_reference(grad):
            return *(grad.unsqueeze(1) * slopes).unbind(), *(None,) * 4
        numbers, mean = ctx.how

        def losses(both: Tensor) -> list[Tensor]:
            index = tversky.Index(*numbers)
            return [tversky.mean_missed(both[0], both[1], number, weight, index, mean=mean)]

        with torch.enable_grad():
            both = torch.stack([probability, own])
        return *by_reference(losses, both, [grad]).unbind(), *(None,) * 4


def _forward(
    probability: Tensor, own: Tensor, number: Tensor, weight: Tensor, numbers: Sequence[float], mean: bool
) -> tuple[Tensor, Tensor]:
    losses, slopes = _outputs(probability)
    sums = (of.contiguous() for of in (probability, own, number, weight))
    _launch(*probability.shape, *numbers, mean)(*sums, losses, slopes)
    return losses, slopes


def _outputs(probability: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return probability.new_empty(probability.shape[:1]), probability.new_empty((2, *probability.shape))


@lru_cache(maxsize=1 << 10)
def _launch(
    rows: int, classes: int, alpha: float, beta: float, gamma: float, smooth: float, mean: bool
) -> Launch:
    index = tversky.Index(alpha, beta, gamma, smooth)
    numbers = (classes, rows * classes, *index, index.left())
    return Launch(_kernel, rows, numbers, (mean, gamma != 1, min(triton.next_power_of_2(classes), _BLOCK)))


_FORWARD = define(
    "cuda_mean_missed(Tensor probability, Tensor own, Tensor number, Tensor weight, float[] numbers, bool mean) "
    "-> (Tensor, Tensor)",
    _forward,
    _outputs,
)


@triton.jit(do_not_specialize=["num_classes", "plane", "alpha", "beta", "gamma", "smooth", "left"])
def _kernel(
    probability_ptr, own_ptr, number_ptr, weight_ptr, loss_ptr, slope_ptr,
    num_classes, plane, alpha, beta, gamma, smooth, left,
    mean: tl.constexpr, is_power: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Write a row's loss, and its slopes to two tables."""
    first = tl.program_id(0).to(tl.int64) * num_classes
    norm = 1.0
    if mean:
        norm = tl.maximum(add_up(weight_ptr + first, num_classes, block), _TINY)
    losses = tl.zeros((block,), tl.float32)
    for start in range(0, num_classes, block):
        c = start + tl.arange(0, block)
        inside = c < num_classes
        c += first
        own = tl.load(own_ptr + c, mask=inside, other=0.0)
        weight = tl.load(weight_ptr + c, mask=inside, other=0.0) / norm
        union = beta * tl.load(number_ptr + c, mask=inside, other=0).to(tl.float32)
        union += alpha * tl.load(probability_ptr + c, mask=inside, other=0.0) + left * own
        total = tl.maximum(union + smooth, _TINY)
        missed = (union - own) / total
        # A NaN is in 1 - T and so in the slopes. Of an empty union there is no slope.
        slope = tl.where(union + smooth < _TINY, 0.0, weight / total) + 0.0 * missed
        if is_power:
            perfect = missed <= 0.0
            power = tl.exp2((gamma - 1.0) * tl.log2(tl.where(perfect, 1.0, missed)))
            slope = tl.where(perfect, 0.0, slope * gamma * power)
            missed = tl.where(perfect, 0.0, missed * power)
        losses += weight * missed
        index = (own + smooth) / total
        tl.store(slope_ptr + c, alpha * slope * index, mask=inside)
        tl.store(slope_ptr + plane + c, slope * (left * index - 1.0), mask=inside)
    tl.store(loss_ptr + tl.program_id(0), tl.sum(losses, 0))
