r"""Cross-entropy of each pixel on a CPU, in loops that numba compiles.

Forward reads the logits from memory once, and keeps :math:`s = \log \sum_k e^{x_k - \max}` of each pixel; backward
reads them once, finds the largest again, and writes :math:`(p_k - [k = y])\, g` once. Half logits have half the size,
and as few as 11 classes of them are 22 bytes a pixel: there s is not kept, but found again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classbalance_losses.kernels.blocked_pixel import Layout, PixelFunction, differentiable, needs_reference
from classbalance_losses.kernels.blocks import Block, BlockedLogits, FullSizeLogits, flat_pixels
from classbalance_losses.kernels.numba_maps import touch
from classbalance_losses.kernels.numba_memory import address
from classbalance_losses.kernels.numba_pixel_loops import JOB, MAPS, backward, forward
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
        loss, log_sum = (_new_map(keep.shape) for _ in range(2))
        error = _new_map(keep.shape if with_error else (0,))
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
        if needs_reference(grad):
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
    job, x = np.zeros(1, JOB), tensors["x"]
    is_half = x.dtype == torch.bfloat16
    job["images"], job["classes"], job["pixels"] = images, classes, pixels = x.shape
    job["size"] = max(min(_PIXELS, _LOGITS // classes), 1)
    job["is_half"] = is_half
    for name, values in tensors.items():
        fits = values.shape == x.shape and (values.stride(-1) == 1 or pixels <= 1)
        dtype = torch.bfloat16 if is_half else torch.float32
        job[name] = address(name, values, dtype, x.shape, is_laid_out=fits)
        job[f"{name}_image"], job[f"{name}_class"], _ = values.stride()
    job["map_image"] = row = maps["keep"].shape[1]
    for name, values in maps.items():
        part, fits = values[block.images, block.pixels], values.is_contiguous() and values.shape[1] == row
        job[name] = address(name, part, MAPS[name], (images, pixels), is_laid_out=fits)
    return job


def _new_map(shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu")
