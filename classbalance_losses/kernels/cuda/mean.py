r"""A weighted mean over pixels on CUDA: class weights, pixel weights, focal's factor and the division in two kernels.

.. math:: L = \frac{1}{Z} \sum_i w_{y_i}\, q_i\, f(\ell_i), \qquad Z = \sum_i w_{y_i} \;\text{or}\; N

f is the identity or focal's :math:`(1 - e^{-\ell})^\gamma \ell`. Backward is one more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from classbalance_losses.kernels.triton_common import OPTIONS, bytes_of, on_device_of
from classbalance_losses.kernels.triton_library import define

__all__ = ["weighted_mean"]

_BLOCK = 1024
_PARTS = 1024  # fixed: as many partial sums on every device
_ADDED = 256  # pixels that a thread adds up one after the other, at most, for each that it has at once
_SMALL = tl.constexpr(0.25)  # from here on 1 - e^-x keeps its digits

# (ℓ) -> the mean and the sum, by PyTorch, for double backward
Plain = Callable[[Tensor], tuple[Tensor, Tensor]]


def weighted_mean(
    loss: Tensor,
    target: Tensor,
    keep: Tensor,
    class_weight: Tensor | None,
    pixel_weight: Tensor | None,
    *,
    gamma: float,
    by_weight: bool,
    plain: Plain,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean over the kept pixels, their sum and Z, each (); Z has no gradient.

    Args:
        loss: ℓ (N, *), float32.
        target: Class indices (N, *) of any integer type.
        keep: Which pixels count, bool (N, *). What others hold does not matter.
        class_weight: w (C,), float32 and constant, or ``None`` for 1.
        pixel_weight: q (N, *), float32 and constant, or ``None`` for 1. A weight of 0 times an infinite loss is 0.
        gamma: Of focal's factor; 0 for none.
        by_weight: Whether Z is the sum of w; else it is the number of pixels.
        plain: The same in operations that can be differentiated twice.
    """
    found: tuple[Tensor, Tensor, Tensor] = _Mean.apply(  # type: ignore[no-untyped-call]
        loss, target, keep, class_weight, pixel_weight, gamma, by_weight, plain
    )
    return found


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        loss: Tensor,
        target: Tensor,
        keep: Tensor,
        class_weight: Tensor | None,
        pixel_weight: Tensor | None,
        gamma: float,
        by_weight: bool,
        plain: Plain,
    ) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.classbalance_losses.weighted_mean(
            loss, target, keep, class_weight, pixel_weight, gamma, by_weight
        )
        ctx.mark_non_differentiable(found[2])
        ctx.set_materialize_grads(False)
        ctx.gamma, ctx.plain = gamma, plain
        ctx.save_for_backward(loss, target, keep, class_weight, pixel_weight, found[2])
        return found

    @staticmethod
    def backward(
        ctx: Any, of_mean: Tensor | None, of_total: Tensor | None, _: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        loss, target, keep, class_weight, pixel_weight, norm = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody will differentiate the gradient
            wanted = [
                both for both in zip(ctx.plain(loss), (of_mean, of_total), strict=True) if both[1] is not None
            ]
            outputs, grads = zip(*wanted, strict=True)
            return *torch.autograd.grad(outputs, loss, grads, create_graph=True), *[None] * 7
        gradient: Tensor | None = None
        for grad, divisor in ((of_mean, norm), (of_total, None)):
            if grad is not None:
                part = torch.ops.classbalance_losses.weighted_mean_gradient(
                    grad, divisor, loss, target, keep, class_weight, pixel_weight, ctx.gamma
                )
                gradient = part if gradient is None else gradient + part
        return gradient, *[None] * 7


def _weighted_mean(
    loss: Tensor,
    target: Tensor,
    keep: Tensor,
    class_weight: Tensor | None,
    pixel_weight: Tensor | None,
    gamma: float,
    by_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _three(loss)
    pixels = target.numel()
    blocks = triton.cdiv(pixels, _BLOCK)
    parts = min(blocks, max(_PARTS, triton.cdiv(blocks, _ADDED)))
    partial = torch.empty(2, parts, dtype=torch.float32, device=loss.device)
    with on_device_of(loss):
        if parts:
            _mean_kernel[(parts,)](
                loss.contiguous(),
                target.contiguous(),
                bytes_of(keep),
                class_weight if class_weight is None else class_weight.contiguous(),
                pixel_weight if pixel_weight is None else pixel_weight.contiguous(),
                partial,
                pixels,
                0 if class_weight is None else class_weight.shape[0],
                parts,
                blocks,
                gamma,
                power=_power(gamma),
                by_weight=by_weight,
                block=_BLOCK,
                **OPTIONS,
            )
        _divide_kernel[(1,)](partial, *outputs, parts, block=_PARTS, **OPTIONS)
    return outputs


def _three(loss: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    mean, total, norm = (torch.empty((), dtype=torch.float32, device=loss.device) for _ in range(3))
    return mean, total, norm


def _weighted_mean_gradient(
    grad: Tensor,
    divisor: Tensor | None,
    loss: Tensor,
    target: Tensor,
    keep: Tensor,
    class_weight: Tensor | None,
    pixel_weight: Tensor | None,
    gamma: float,
) -> Tensor:
    output = _map(grad, divisor, loss)
    if not loss.numel():
        return output
    with on_device_of(loss):
        _gradient_kernel[(triton.cdiv(loss.numel(), _BLOCK),)](
            grad,
            divisor,
            loss.contiguous(),
            target.contiguous(),
            bytes_of(keep),
            class_weight if class_weight is None else class_weight.contiguous(),
            pixel_weight if pixel_weight is None else pixel_weight.contiguous(),
            output,
            loss.numel(),
            0 if class_weight is None else class_weight.shape[0],
            gamma,
            power=_power(gamma),
            block=_BLOCK,
            **OPTIONS,
        )
    return output


def _map(grad: Tensor, divisor: Tensor | None, loss: Tensor, *_: object) -> Tensor:
    return torch.empty(loss.shape, dtype=torch.float32, device=loss.device)


def _power(gamma: float) -> int:
    """Return γ where it is one of those that need no logarithm, and else -1."""
    return int(gamma) if gamma in (0.0, 1.0, 2.0) else -1


_WEIGHTS = "Tensor target, Tensor keep, Tensor? class_weight, Tensor? pixel_weight, float gamma"
define(
    f"weighted_mean(Tensor loss, {_WEIGHTS}, bool by_weight) -> (Tensor, Tensor, Tensor)",
    _weighted_mean,
    _three,
)
define(
    f"weighted_mean_gradient(Tensor grad, Tensor? divisor, Tensor loss, {_WEIGHTS}) -> Tensor",
    _weighted_mean_gradient,
    _map,
)


@triton.jit(do_not_specialize=["num_classes", "parts", "blocks", "gamma"])
def _mean_kernel(
    loss_ptr: tl.tensor,
    target_ptr: tl.tensor,
    keep_ptr: tl.tensor,
    class_weight_ptr: tl.tensor,
    pixel_weight_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    pixels: tl.tensor,
    num_classes: tl.tensor,
    parts: tl.tensor,
    blocks: tl.tensor,
    gamma: tl.tensor,
    power: tl.constexpr,
    by_weight: tl.constexpr,
    block: tl.constexpr,
) -> None:
    part = tl.program_id(0)
    total = tl.zeros((block,), tl.float32)
    norm = tl.zeros((block,), tl.float32)
    for at in range(part, blocks, parts):
        pixel = tl.cast(at, tl.int64) * block + tl.arange(0, block)
        inside = pixel < pixels
        kept = tl.load(keep_ptr + pixel, mask=inside, other=0) != 0
        loss = tl.load(loss_ptr + pixel, mask=inside, other=0.0)
        if power != 0:
            loss, _ = _focal(loss, gamma, power)
        weight = tl.full((block,), 1.0, tl.float32)
        if class_weight_ptr is not None:
            weight = _own(class_weight_ptr, target_ptr, pixel, inside, num_classes)
        if by_weight:
            norm += tl.where(kept, weight, 0.0)
        else:
            norm += tl.where(kept, 1.0, 0.0)
        if pixel_weight_ptr is not None:
            weight *= tl.load(pixel_weight_ptr + pixel, mask=inside, other=0.0)
        weightless = (weight == 0.0) & (loss == float("inf"))
        total += tl.where(kept & ~weightless, loss * weight, 0.0)
    tl.store(partial_ptr + part, tl.sum(total, 0))
    tl.store(partial_ptr + parts + part, tl.sum(norm, 0))


@triton.jit(do_not_specialize=["parts"])
def _divide_kernel(
    partial_ptr: tl.tensor,
    mean_ptr: tl.tensor,
    total_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    parts: tl.tensor,
    block: tl.constexpr,
) -> None:
    total = tl.zeros((block,), tl.float32)
    norm = tl.zeros((block,), tl.float32)
    for first in range(0, parts, block):
        part = first + tl.arange(0, block)
        inside = part < parts
        total += tl.load(partial_ptr + part, mask=inside, other=0.0)
        norm += tl.load(partial_ptr + parts + part, mask=inside, other=0.0)
    sum_of_all = tl.sum(total, 0)
    sum_of_norm = tl.sum(norm, 0)
    tl.store(mean_ptr, sum_of_all / tl.where(sum_of_norm > 0, sum_of_norm, 1.0))
    tl.store(total_ptr, sum_of_all)
    tl.store(norm_ptr, sum_of_norm)


@triton.jit(do_not_specialize=["num_classes", "gamma"])
def _gradient_kernel(
    grad_ptr: tl.tensor,
    divisor_ptr: tl.tensor,
    loss_ptr: tl.tensor,
    target_ptr: tl.tensor,
    keep_ptr: tl.tensor,
    class_weight_ptr: tl.tensor,
    pixel_weight_ptr: tl.tensor,
    output_ptr: tl.tensor,
    pixels: tl.tensor,
    num_classes: tl.tensor,
    gamma: tl.tensor,
    power: tl.constexpr,
    block: tl.constexpr,
) -> None:
    pixel = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = pixel < pixels
    scale = tl.load(grad_ptr)
    if divisor_ptr is not None:
        divisor = tl.load(divisor_ptr)
        scale = scale / tl.where(divisor > 0, divisor, 1.0)
    kept = tl.load(keep_ptr + pixel, mask=inside, other=0) != 0
    slope = tl.zeros((block,), tl.float32) + scale
    if class_weight_ptr is not None:
        slope *= _own(class_weight_ptr, target_ptr, pixel, inside, num_classes)
    if pixel_weight_ptr is not None:
        slope *= tl.load(pixel_weight_ptr + pixel, mask=inside, other=0.0)
    if power != 0:
        _, of_form = _focal(tl.load(loss_ptr + pixel, mask=inside, other=0.0), gamma, power)
        slope *= of_form
    tl.store(output_ptr + pixel, tl.where(kept, slope, 0.0), mask=inside)


@triton.jit
def _own(
    class_weight_ptr: tl.tensor,
    target_ptr: tl.tensor,
    pixel: tl.tensor,
    inside: tl.tensor,
    num_classes: tl.tensor,
) -> tl.tensor:
    """Return the weight of each pixel's class; of a label that is about to be refused, one of another's."""
    target = tl.load(target_ptr + pixel, mask=inside, other=0).to(tl.int32)
    target = tl.minimum(tl.maximum(target, 0), num_classes - 1)
    return tl.load(class_weight_ptr + target, mask=inside, other=0.0)


@triton.jit
def _focal(loss: tl.tensor, gamma: tl.tensor, power: tl.constexpr) -> tl.tensor:
    r"""Return :math:`u^\gamma \ell` and its slope :math:`u^{\gamma-1} (u + \gamma \ell e^{-\ell})`, u = 1 - e^-ℓ."""
    # Where ℓ is so large that e^-ℓ rounds to nothing, infinite maybe, u is 1. A NaN stays one.
    bounded = tl.where(loss > 100.0, 100.0, loss)
    rest = tl.exp(-bounded)
    x = tl.where(bounded < _SMALL, bounded, 0.0)
    series = x * (1.0 - x / 2 * (1.0 - x / 3 * (1.0 - x / 4 * (1.0 - x / 5 * (1.0 - x / 6 * (1.0 - x / 7))))))
    u = tl.where(bounded < _SMALL, series, 1.0 - rest)
    if power == 1:
        lower = tl.full(u.shape, 1.0, tl.float32)
    elif power == 2:
        lower = u
    else:
        lower = tl.exp2((gamma - 1.0) * tl.log2(tl.where(loss <= 0, 1.0, u)))
    value = lower * u * loss
    slope = lower * (u + gamma * bounded * rest)
    return tl.where(loss <= 0, 0.0, value), tl.where(loss <= 0, 0.0, slope)
