r"""Stage 1 on a CPU, block by block: probabilities exist for one block at a time, and are computed again in backward.

Forward reads the logits once and keeps numbers for each pixel alone; backward reads them once more and writes the
gradient, :math:`(p - e_y)\, g`, in its place. Each step is a vectorised torch function on a block that fits the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from classbalance_losses.kernels.blocks import (
    BlockedLogits,
    Scratch,
    accumulation_dtype,
    class_rows,
    flat_pixels,
)
from classbalance_losses.kernels.masks import kept_or_zero
from classbalance_losses.kernels.plain import is_plain

# logits (n, C, *), target (n, *), keep (n, *) -> a number for each pixel (n, *): the reference of what is computed
PixelFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
Layout = Callable[[Tensor], BlockedLogits]

_LOG2_E = 1 / math.log(2)


def cross_entropy(
    input: Tensor, target: Tensor, keep: Tensor, layout: Layout, reference: PixelFunction, function: type[Any]
) -> Tensor:
    """Return the cross-entropy of each pixel (N, *), 0 where not kept, by `CrossEntropy` or one that does the same."""
    loss: Tensor = function.apply(input, target, keep, layout, reference, False)[0]
    return loss


def cross_entropy_and_error(
    input: Tensor, target: Tensor, keep: Tensor, layout: Layout, reference: PixelFunction, function: type[Any]
) -> tuple[Tensor, Tensor]:
    r"""Return the cross-entropy of each pixel, and :math:`\lVert p - e_y \rVert^2`, a constant; 0 where not kept."""
    loss, error = function.apply(input, target, keep, layout, reference, True)
    return loss, error


def sum_over_errors(
    input: Tensor,
    target: Tensor,
    keep: Tensor,
    layout: Layout,
    function: Callable[..., Tensor],
    maps: Sequence[Tensor | None],
) -> Tensor:
    r"""Return the sum of ``function(p - e_y, *parts of maps)`` over the blocks."""
    labels, kept = (flat_pixels(values).unsqueeze(1) for values in (target, keep))
    rows = [None if values is None else class_rows(values) for values in maps]
    logits, scratch = layout(input), Scratch()
    total = torch.zeros((), dtype=torch.float64, device=input.device)
    for block in logits.blocks():
        x = logits.load(block)
        shifted = torch.sub(x, x.amax(1, keepdim=True), out=scratch.take(x.shape, x.dtype))
        power = exp_(shifted)
        error = power.div_(power.sum(1, keepdim=True))
        index = class_index(block.of(labels), input.shape[1])
        error.scatter_add_(1, index, error.new_full((), -1).expand(index.shape))
        error.masked_fill_(~block.of(kept), 0)
        total = total + function(error, *(None if values is None else block.of(values) for values in rows))
    return total.to(accumulation_dtype(input.dtype))


def exp_(x: Tensor) -> Tensor:
    """Return exp(x) in place, by torch's exp2: on a CPU it is quicker than its exp, and as precise."""
    return x.mul_(_LOG2_E).exp2_()


class CrossEntropy(torch.autograd.Function):
    """Closed form: backward is (softmax - onehot) · g. Of each pixel, the largest logit is kept, if it is not half.

    Half logits have half the size, and as few as 11 classes of them are 22 bytes a pixel: there, it is found again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        keep: Tensor,
        layout: Layout,
        reference: PixelFunction,
        with_error: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return the loss (N, *), and the error likewise or, without it, an empty tensor."""
        labels = flat_pixels(target).unsqueeze(1)
        largest = torch.empty(labels.shape, dtype=accumulation_dtype(input.dtype), device=keep.device)
        own, rest = torch.empty_like(largest), torch.empty_like(largest)
        error = torch.empty_like(largest if with_error else largest[:0])
        logits, scratch = layout(input), Scratch()
        for block in logits.blocks():
            x, index = logits.load(block), class_index(block.of(labels), input.shape[1])
            highest = torch.amax(x, 1, keepdim=True, out=block.of(largest))
            shifted = torch.sub(x, highest, out=scratch.take(x.shape, x.dtype))
            torch.gather(shifted, 1, index, out=block.of(own))
            others = exp_(shifted).scatter_(1, index, 0)
            torch.sum(others, 1, keepdim=True, out=block.of(rest))
            if with_error:  # ‖p - e_y‖² Σ², without the cancellation in 1 - p_y
                torch.sum(others.square_(), 1, keepdim=True, out=block.of(error))
        more = own.expm1().add_(rest)  # than 1: what log1p does not lose
        if with_error:
            error.addcmul_(rest, rest).div_((more + 1).square_())
        loss = more.log1p_().sub_(own)
        ctx.save_for_backward(input, target, keep, largest if largest.dtype == input.dtype else None)
        ctx.layout, ctx.reference = layout, reference
        # Of ignored pixels, which may be NaN, too. A sum of numbers >= 0 hides none that is not finite.
        ctx.is_finite = math.isfinite(loss.sum())
        ctx.set_materialize_grads(False)
        if with_error:
            error = kept_or_zero(error.view(keep.shape), keep)
        ctx.mark_non_differentiable(error)
        return kept_or_zero(loss.view(keep.shape), keep), error

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradient in the logits (N, C, *), or in their lower resolution."""
        if grad is None:
            return (None,) * 6
        input, target, keep, largest = ctx.saved_tensors
        if needs_reference(grad):
            return (differentiable(ctx, input, target, keep, grad), *(None,) * 5)
        labels, kept, grads = (flat_pixels(values).unsqueeze(1) for values in (target, keep, grad))
        logits = ctx.layout(input)
        for block in logits.blocks():
            keep_here, x = block.of(kept), logits.load(block)
            wanted = kept_or_zero(block.of(grads), keep_here)
            highest = x.amax(1, keepdim=True) if largest is None else block.of(largest)
            power = exp_(torch.sub(x, highest, out=logits.place(block)))
            gradient = power.mul_(wanted / power.sum(1, keepdim=True))
            gradient.scatter_add_(1, class_index(block.of(labels), input.shape[1]), -wanted)
            if not ctx.is_finite:  # NaN · 0 is NaN
                gradient.masked_fill_(~keep_here, 0)
            logits.store(block, gradient)
        return (logits.gradient(), *(None,) * 5)


def needs_reference(grad: Tensor) -> bool:
    """Whether the gradient needs a graph of its own, for a backward of the backward, or ``grad`` is not plain."""
    return torch.is_grad_enabled() or not is_plain(grad)


def by_reference(reference: Callable[[Tensor], Tensor], input: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient by functions of torch's: with a graph if one is wanted, and for any kind of ``grad``."""
    has_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        value = reference(input)
    gradient: Tensor = torch.autograd.grad(value, input, grad, create_graph=has_graph)[0]
    return gradient


def differentiable(ctx: Any, input: Tensor, other: Tensor, keep: Tensor, grad: Tensor) -> Tensor:
    """Return the same for a function of logits that ``ctx`` knows."""
    return by_reference(lambda x: ctx.reference(ctx.layout(x).full_size(), other, keep), input, grad)


def class_index(labels: Tensor, num_classes: int) -> Tensor:
    """Return labels as an index along the class axis; an ignored one becomes any class."""
    return labels.clamp(0, num_classes - 1)
