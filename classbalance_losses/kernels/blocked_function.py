"""Stage 1 on a CPU for any function of a pixel, block by block: by autograd on each block, or in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from classbalance_losses.kernels.blocked_pixel import (
    Layout,
    PixelFunction,
    class_index,
    differentiable,
    exp_,
    needs_reference,
)
from classbalance_losses.kernels.blocks import (
    Block,
    FullSizeLogits,
    accumulation_dtype,
    class_rows,
    flat_pixels,
)
from classbalance_losses.kernels.masks import kept_or_zero


class ClosedForm(Protocol):
    """A function ℓ of log-probabilities (n, C, p) and labels (n, 1, p)."""

    def value(self, log_prob: Tensor, label: Tensor) -> Tensor:
        """Return ℓ (n, 1, p)."""

    def slope(self, log_prob: Tensor, label: Tensor) -> Tensor:
        r"""Return :math:`\partial \ell / \partial \log p` (n, C, p)."""


def pixel_function(
    input: Tensor, target: Tensor, keep: Tensor, layout: Layout, reference: PixelFunction
) -> Tensor:
    """Return any function of a pixel's logits and label (N, *), whose gradient autograd finds block by block."""
    value: Tensor = _PixelFunction.apply(input, layout, reference, target, keep)  # type: ignore[no-untyped-call]
    return value


def closed_function(
    input: Tensor, target: Tensor, keep: Tensor, layout: Layout, reference: PixelFunction, form: ClosedForm
) -> Tensor:
    """Return the same (N, *) for a function whose slope is known."""
    value: Tensor = _ClosedFunction.apply(input, target, keep, layout, reference, form)  # type: ignore[no-untyped-call]
    return value


def map_function(input: Tensor, other: Tensor, keep: Tensor, reference: PixelFunction) -> Tensor:
    """Return any function (N, *) of a pixel's vectors in a map (N, D, *) and in a constant one, where kept.

    ``reference`` gets parts of the three: (n, D, p), (n, D, p) and (n, p).
    """
    value: Tensor = _PixelFunction.apply(input, FullSizeLogits, reference, other, keep)  # type: ignore[no-untyped-call]
    return value


class _PixelFunction(torch.autograd.Function):
    """Any function: backward runs it again on each block, and differentiates it there."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, layout: Layout, reference: PixelFunction, other: Tensor, keep: Tensor
    ) -> Tensor:
        ctx.save_for_backward(input, other, keep)
        ctx.layout, ctx.reference = layout, reference
        value = torch.empty(keep.shape, dtype=accumulation_dtype(input.dtype), device=keep.device)
        logits, (others, kept, place) = layout(input), (_parts_of(v, input) for v in (other, keep, value))
        for block in logits.blocks():
            place(block).copy_(reference(logits.load(block), others(block), kept(block)))
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, other, keep = ctx.saved_tensors
        if needs_reference(grad):
            return (differentiable(ctx, input, other, keep, grad), *(None,) * 4)
        logits, (others, kept, grads) = ctx.layout(input), (_parts_of(v, input) for v in (other, keep, grad))
        for block in logits.blocks():
            with torch.enable_grad():
                x = logits.load(block).detach().requires_grad_()
                value = ctx.reference(x, others(block), kept(block))
            logits.store(block, torch.autograd.grad(value, x, grads(block))[0])
        return (logits.gradient(), *(None,) * 4)


class _ClosedFunction(torch.autograd.Function):
    """A function of log-probabilities: backward puts its slope u through the softmax, u - p · Σu."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        keep: Tensor,
        layout: Layout,
        reference: PixelFunction,
        form: ClosedForm,
    ) -> Tensor:
        ctx.save_for_backward(input, target, keep)
        ctx.layout, ctx.reference, ctx.form = layout, reference, form
        labels, kept = (flat_pixels(values).unsqueeze(1) for values in (target, keep))
        value = torch.empty(labels.shape, dtype=accumulation_dtype(input.dtype), device=keep.device)
        logits = layout(input)
        for block in logits.blocks():
            log_prob = _log_prob(logits.load(block), block.of(kept))
            block.of(value).copy_(form.value(log_prob, class_index(block.of(labels), input.shape[1])))
        return kept_or_zero(value.view(keep.shape), keep)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, target, keep = ctx.saved_tensors
        if needs_reference(grad):
            return (differentiable(ctx, input, target, keep, grad), *(None,) * 5)
        labels, kept, grads = (flat_pixels(values).unsqueeze(1) for values in (target, keep, grad))
        logits = ctx.layout(input)
        for block in logits.blocks():
            log_prob = _log_prob(logits.load(block), block.of(kept))
            slope = ctx.form.slope(log_prob, class_index(block.of(labels), input.shape[1]))
            gradient = slope.sub_(exp_(log_prob).mul_(slope.sum(1, keepdim=True)))
            logits.store(block, gradient.mul_(kept_or_zero(block.of(grads), block.of(kept))))
        return (logits.gradient(), *(None,) * 5)


def _log_prob(x: Tensor, keep: Tensor) -> Tensor:
    """Return log-probabilities (n, C, p), those of logits 0 where not kept: what stands there may be NaN."""
    return torch.log_softmax(kept_or_zero(x, keep), 1)


def _parts_of(values: Tensor, input: Tensor) -> Callable[[Block], Tensor]:
    """Return what views a block's part of a map (N, K, *), as (n, K, p), or of a number for each pixel, as (n, p)."""
    if values.ndim == input.ndim:
        rows = class_rows(values)
        return lambda block: block.of(rows)
    rows = flat_pixels(values).unsqueeze(1)
    return lambda block: block.of(rows).squeeze(1)
