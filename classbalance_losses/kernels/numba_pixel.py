r"""Cross-entropy of each pixel on a CPU, in loops that numba compiles.

Forward reads the logits from memory once, and keeps :math:`s = \log \sum_k e^{x_k - \max}` of each pixel; backward
reads them once, finds the largest again, and writes :math:`(p_k - [k = y])\, g` once. Half logits have half the size,
and as few as 11 classes of them are 22 bytes a pixel: there s is not kept, but found again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classbalance_losses.kernels.blocked_pixel import Layout, PixelFunction, differentiable
from classbalance_losses.kernels.blocks import Block, BlockedLogits, FullSizeLogits, flat_pixels
from classbalance_losses.kernels.numba_maps import touch
from classbalance_losses.kernels.numba_pixel_loops import JOB, backward, forward
from classbalance_losses.kernels.numba_threads import run

_LOGITS = 1 << 16  # that a thread takes at a time: 256 KiB
_PIXELS = 512  # at most: its numbers of a pixel stay in the first-level cache


class CrossEntropy(torch.autograd.Function):
    """What `blocked_pixel.CrossEntropy` is in steps of torch."""

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
        loss, log_sum = (torch.empty(keep.shape) for _ in range(2))
        error = torch.empty(keep.shape if with_error else 0)
        maps = {"label": target, "keep": keep, "loss": loss, "log_sum": log_sum}
        maps = _rows({**maps, "error": error} if with_error else maps)
        is_broken = False
        logits = layout(input)
        for block, x in _blocks(logits):
            job = _job(block, maps, x=x)
            run(forward, job)
            is_broken |= bool(job["is_broken"])
        ctx.save_for_backward(input, target, keep, log_sum if log_sum.dtype == input.dtype else None)
        ctx.layout, ctx.reference, ctx.is_broken = layout, reference, is_broken
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(error)
        return loss, error

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradient in the logits (N, C, *), or in their lower resolution."""
        if grad is None:
            return (None,) * 6
        input, target, keep, log_sum = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (differentiable(ctx, input, target, keep, grad), *(None,) * 5)
        maps = {"label": target, "keep": keep, "slope": grad}
        maps = _rows(maps if log_sum is None else {**maps, "log_sum": log_sum})
        logits = ctx.layout(input)
        if isinstance(logits, FullSizeLogits):
            touch(logits.gradient_rows)
        for block, x in _blocks(logits):
            gradient = logits.gradient_rows if isinstance(logits, FullSizeLogits) else logits.place(block)
            job = _job(block, maps, x=x, gradient=gradient)
            job["is_broken"] = ctx.is_broken
            run(backward, job)
            logits.store(block, gradient)
        return (logits.gradient(), *(None,) * 5)


def _rows(maps: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: flat_pixels(values).contiguous() for name, values in maps.items()}


def _blocks(logits: BlockedLogits) -> Iterator[tuple[Block, Tensor]]:
    """Go over blocks with their logits: those in memory are one block as they stand, for the loops cut it up."""
    if isinstance(logits, FullSizeLogits):
        images, _, pixels = logits.rows.shape
        yield Block(slice(0, images), slice(0, pixels)), logits.rows
    else:
        for block in logits.blocks():
            yield block, logits.load(block)


def _job(block: Block, maps: dict[str, Tensor], **tensors: Tensor) -> Any:
    """Return sizes, addresses and strides of a block's part of ``maps`` (N, P), and of its tensors (n, C, p)."""
    job = np.zeros(1, JOB)
    job["images"], job["classes"], job["pixels"] = shape = tensors["x"].shape
    job["size"] = max(min(_PIXELS, _LOGITS // shape[1]), 1)
    job["is_half"] = tensors["x"].dtype == torch.bfloat16
    for name, values in tensors.items():
        job[name], (job[f"{name}_image"], job[f"{name}_class"], _) = values.data_ptr(), values.stride()
    for name, values in maps.items():
        job[name], job["map_image"] = values[block.images, block.pixels].data_ptr(), values.shape[1]
    return job
