"""Sums over the pixels of each class. No gradient flows through any of them."""

from __future__ import annotations

import torch
from torch import Tensor

from classbalance_losses._dispatch import backend_for
from classbalance_losses.kernels import blocked_classes
from classbalance_losses.kernels.numba_threads import MAY_COMPILE
from classbalance_losses.kernels.plain import is_constant

_BLOCK = 1 << 6  # pixels that are added one after the other: a table of at most a 64th of the logits' size


def blocked_from(*, has_loop: bool) -> int:
    """Return the pixels from which blocks were measured to be quicker: sooner, if numba may compile a loop for them."""
    return 1 << 13 if has_loop and MAY_COMPILE else 1 << 17


def has_kernels(loss: Tensor, target: Tensor, keep: Tensor, *weights: Tensor | None) -> bool:
    """Whether the kernels that add maps up can be used: eagerly, on float32, with weights that are constant."""
    given = [weight for weight in weights if weight is not None]
    return (
        not torch.compiler.is_compiling()
        and loss.dtype == torch.float32
        and all(is_constant(weight) for weight in given)
        and backend_for(loss, target, keep, *given, blocked_from=loss.numel() + 1) == "triton"
    )


def class_counts(target: Tensor, keep: Tensor, num_classes: int) -> Tensor:
    """Return the number of kept pixels of each class, (C,) of int64."""
    backend = backend_for(target, keep, blocked_from=blocked_from(has_loop=True))
    if backend == "triton":
        from classbalance_losses.kernels import triton_classes  # noqa: PLC0415 - an optional dependency

        return triton_classes.class_sums(target, keep, num_classes).number[0]
    if backend == "blocked":  # bincount is quicker than a scatter, but synchronises elsewhere
        return blocked_classes.class_counts(target, keep, num_classes)
    index = torch.where(keep, target, 0).flatten()
    zeros = torch.zeros(num_classes, dtype=torch.int64, device=target.device)
    return zeros.scatter_add(0, index, keep.flatten().long())


def class_sums(value: Tensor, target: Tensor, keep: Tensor, num_classes: int) -> Tensor:
    """Return the sum of ``value`` over the kept pixels of each class, (C,), in float32 or, for float64, float64.

    Summed in two stages, a block of pixels at a time: a million float32 additions in a row would lose the last three
    digits, and not every device has float64.
    """
    dtype = torch.promote_types(value.dtype, torch.float32)
    first = blocked_from(has_loop=value.dtype == torch.float32)
    backend = backend_for(value, target, keep, blocked_from=first)
    if backend == "triton" and value.dtype == torch.float32:
        from classbalance_losses.kernels import triton_classes  # noqa: PLC0415 - an optional dependency

        return triton_classes.class_sums(target, keep, num_classes, value.detach()).value[0]
    if backend == "blocked":
        return blocked_classes.class_sums(value.detach(), target, keep, num_classes).to(dtype)
    blocks = -(-target.numel() // _BLOCK)
    block = torch.arange(target.numel(), dtype=torch.int64, device=value.device) // _BLOCK
    place = block * num_classes + torch.where(keep, target, 0).flatten()
    zeros = torch.zeros(blocks * num_classes, dtype=dtype, device=value.device)
    sums = zeros.scatter_add(0, place, torch.where(keep, value.detach(), 0).flatten().to(dtype))
    return sums.view(blocks, num_classes).sum(0)


def class_vector_sums(vectors: Tensor, target: Tensor, keep: Tensor, num_classes: int) -> Tensor:
    """Return the sum of ``vectors`` (P, D) over the kept rows of each class, (C, D).

    A product with the membership matrix rather than a scatter: its order of summation is fixed.
    """
    classes = torch.arange(num_classes, dtype=torch.int64, device=target.device)
    member = (target == classes.unsqueeze(1)) & keep
    rows = torch.where(keep.unsqueeze(1), vectors.detach(), 0)
    with torch.autocast(vectors.device.type, enabled=False):
        return member.to(rows.dtype) @ rows


def class_means(sums: Tensor, count: Tensor) -> Tensor:
    """Return ``sums / count``, and 0 for a class without pixels."""
    return torch.where(count > 0, sums / count.clamp(min=1), 0)
