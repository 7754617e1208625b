"""Counting on CUDA: the histograms behind exact mining, and the sums over each class's pixels.

All of it is deterministic. Integers may be added in any order; floats are added in two stages, by a fixed number of
programs into a buffer (programs, C) and then over that buffer, so that no addition depends on who comes first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from classbalance_losses.kernels.triton_common import OPTIONS, bytes_of, on_device_of

__all__ = ["class_counts", "class_sums", "histogram16"]

_DIGIT = 16
_BINS = 1 << _DIGIT
_ENTRIES = 1024  # of a row, for one program
_ELEMENTS = 4096
_CLASSES = 32
_PROGRAMS = 512  # fixed: as many partial sums on every device


@torch.library.custom_op(
    "classbalance_losses::histogram16",
    mutates_args=(),
    schema="(Tensor bits, Tensor keep, Tensor prefix, int shift) -> Tensor",
)
def histogram16(bits: Tensor, keep: Tensor, prefix: Tensor, shift: int) -> Tensor:
    """Return how many kept entries fall into each bin of the 16-bit digit at ``shift``: (R, 65536) of int64.

    Args:
        bits: Non-negative integers (R, P), int32 or int64.
        keep: Which of them count (R, P).
        prefix: For each row (R,) what the bits above the digit must be, for an entry to count. At the highest
            digit that is 0.
        shift: The lowest bit of the digit.
    """
    rows, entries = bits.shape
    histogram = torch.zeros(rows, _BINS, dtype=torch.int64, device=bits.device)
    blocks = triton.cdiv(entries, _ENTRIES)
    if rows * blocks:
        with on_device_of(bits):
            _histogram_kernel[(rows * blocks,)](
                bits.contiguous(),
                bytes_of(keep),
                prefix.contiguous(),
                histogram,
                entries,
                blocks,
                shift=shift,
                above=min(shift + _DIGIT, 63),  # a shift by all 64 bits would be undefined
                bins=_BINS,
                block=_ENTRIES,
                **OPTIONS,
            )
    return histogram


@histogram16.register_fake
def _(bits: Tensor, keep: Tensor, prefix: Tensor, shift: int) -> Tensor:
    return torch.empty(bits.shape[0], _BINS, dtype=torch.int64, device=bits.device)


@torch.library.custom_op(
    "classbalance_losses::class_counts",
    mutates_args=(),
    schema="(Tensor target, Tensor keep, int num_classes) -> Tensor",
)
def class_counts(target: Tensor, keep: Tensor, num_classes: int) -> Tensor:
    """Return the number of kept pixels of each class, (C,) of int64; ``target`` of any integer type."""
    return _class_sums(None, target, keep, num_classes)


@class_counts.register_fake
def _(target: Tensor, keep: Tensor, num_classes: int) -> Tensor:
    return torch.empty(num_classes, dtype=torch.int64, device=target.device)


@torch.library.custom_op(
    "classbalance_losses::class_sums",
    mutates_args=(),
    schema="(Tensor value, Tensor target, Tensor keep, int num_classes) -> Tensor",
)
def class_sums(value: Tensor, target: Tensor, keep: Tensor, num_classes: int) -> Tensor:
    """Return the sum of ``value`` (N, *) over the kept pixels of each class, (C,), added in float64."""
    return _class_sums(value, target, keep, num_classes)


@class_sums.register_fake
def _(value: Tensor, target: Tensor, keep: Tensor, num_classes: int) -> Tensor:
    return torch.empty(num_classes, dtype=torch.float64, device=value.device)


def _class_sums(value: Tensor | None, target: Tensor, keep: Tensor, num_classes: int) -> Tensor:
    block_c = min(triton.next_power_of_2(num_classes), _CLASSES)
    block_p = min(_ELEMENTS // block_c, 1024)
    blocks = triton.cdiv(target.numel(), block_p)
    programs = min(blocks, _PROGRAMS)
    dtype = torch.int64 if value is None else torch.float64
    partial = torch.empty(programs, num_classes, dtype=dtype, device=target.device)
    if programs:
        target = target.contiguous()
        with on_device_of(target):
            _class_kernel[(programs, triton.cdiv(num_classes, block_c))](
                target if value is None else value.contiguous(),
                target,
                bytes_of(keep),
                partial,
                num_classes,
                target.numel(),
                blocks,
                programs,
                programs * block_p,
                counting=value is None,
                block_c=block_c,
                block_p=block_p,
                **OPTIONS,
            )
    return partial.sum(0)


@triton.jit
def _histogram_kernel(
    bits_ptr: tl.tensor,
    keep_ptr: tl.tensor,
    prefix_ptr: tl.tensor,
    histogram_ptr: tl.tensor,
    entries: tl.tensor,
    blocks: tl.tensor,
    shift: tl.constexpr,
    above: tl.constexpr,
    bins: tl.constexpr,
    block: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    entry = (program % blocks).to(tl.int64) * block + tl.arange(0, block)
    inside = entry < entries
    bits = tl.load(bits_ptr + row * entries + entry, mask=inside, other=0).to(tl.int64)
    kept = tl.load(keep_ptr + row * entries + entry, mask=inside, other=0) != 0
    active = kept & ((bits >> above) == tl.load(prefix_ptr + row))
    digit = ((bits >> shift) & (bins - 1)).to(tl.int32)
    histogram = histogram_ptr + row * bins

    # Most pixels of a trained model lose about 0 and share a bin, where additions would queue up one by one. So the
    # lowest digit of a block is counted in registers and added once.
    lowest = tl.min(tl.where(active, digit, bins), 0)
    common = active & (digit == lowest)
    tl.atomic_add(
        histogram + lowest, tl.sum(common.to(tl.int32), 0).to(tl.int64), mask=lowest < bins, sem="relaxed"
    )
    one = tl.full((block,), 1, tl.int64)
    tl.atomic_add(histogram + digit, one, mask=active & (digit != lowest), sem="relaxed")


@triton.jit
def _class_kernel(
    value_ptr: tl.tensor,
    target_ptr: tl.tensor,
    keep_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    num_classes: tl.tensor,
    pixels: tl.tensor,
    blocks: tl.tensor,
    programs: tl.tensor,
    step: tl.tensor,
    counting: tl.constexpr,
    block_c: tl.constexpr,
    block_p: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    classes = tl.program_id(1) * block_c + tl.arange(0, block_c)
    pixel = program.to(tl.int64) * block_p + tl.arange(0, block_p)
    # One sum for each class and lane: lanes are added up once, at the end.
    total = tl.zeros((block_c, block_p), partial_ptr.dtype.element_ty)
    for _ in range(program, blocks, programs):
        inside = pixel < pixels
        kept = tl.load(keep_ptr + pixel, mask=inside, other=0) != 0
        target = tl.where(kept, tl.load(target_ptr + pixel, mask=inside, other=0).to(tl.int32), -1)
        member = classes[:, None] == target[None, :]
        if counting:
            total += member.to(tl.int64)
        else:
            value = tl.load(value_ptr + pixel, mask=inside, other=0.0).to(tl.float64)
            total += tl.where(member, value[None, :], 0.0)
        pixel += step
    tl.store(partial_ptr + program * num_classes + classes, tl.sum(total, 1), mask=classes < num_classes)
