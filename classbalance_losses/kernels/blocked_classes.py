"""Sums over pixels, of each class or of all, and numbers of classes spread over pixels: on a CPU, range by range.

Indices and float64 copies of a whole map would be fresh memory, whose page faults take longer than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from classbalance_losses.kernels import numba_threads
from classbalance_losses.kernels.masks import kept_or_zero

_PIXELS = 1 << 17


def class_counts(target: Tensor, keep: Tensor, num_classes: int) -> Tensor:
    """Return the number of kept pixels of each class, (C,) of int64."""
    if numba_threads.can_compile():
        from classbalance_losses.kernels import numba_maps  # noqa: PLC0415 - an optional dependency

        return numba_maps.class_counts(target, keep, num_classes)
    total = torch.zeros(2 * num_classes, dtype=torch.int64, device=target.device)
    for labels, kept in _ranges(target, keep):
        total += torch.bincount(_place(labels, kept, num_classes), minlength=2 * num_classes)
    return total[:num_classes]


def class_sums(value: Tensor, target: Tensor, keep: Tensor, num_classes: int) -> Tensor:
    """Return the float64 sum of ``value`` over the kept pixels of each class, (C,)."""
    if numba_threads.can_compile() and value.dtype == torch.float32:
        from classbalance_losses.kernels import numba_maps  # noqa: PLC0415 - an optional dependency

        return numba_maps.class_sums(value, target, keep, num_classes)
    total = torch.zeros(2 * num_classes, dtype=torch.float64, device=target.device)
    for values, labels, kept in _ranges(value, target, keep):
        total.scatter_add_(0, _place(labels, kept, num_classes), values.double())
    return total[:num_classes]


def per_pixel(class_value: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    """Return each kept pixel's entry of ``class_value`` (C,), in the target's shape, and 0 elsewhere."""
    if numba_threads.can_compile() and class_value.dtype == torch.float32:
        from classbalance_losses.kernels import numba_maps  # noqa: PLC0415 - an optional dependency

        return numba_maps.per_pixel(class_value, target, keep)
    value = torch.empty(target.shape, dtype=class_value.dtype, device=target.device)
    for labels, kept, part in _ranges(target, keep, value):
        chosen = class_value.index_select(0, labels.clamp(0, class_value.shape[0] - 1))
        part.copy_(kept_or_zero(chosen, kept))
    return value


def row_counts(keep: Tensor) -> Tensor:
    """Return how many of each row of a mask (R, P) are set, (R,); torch's sum would convert them all at once."""
    return torch.stack([_count(row) for row in keep])


def _count(keep: Tensor) -> Tensor:
    if numba_threads.can_compile():
        from classbalance_losses.kernels import numba_maps  # noqa: PLC0415 - an optional dependency

        return numba_maps.count(keep)
    return torch.stack([part.sum() for (part,) in _ranges(keep)]).sum()


def _ranges(*values: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Go over tensors of one shape together."""
    yield from zip(*(torch.split(x.flatten(), _PIXELS) for x in values), strict=True)


def _place(target: Tensor, keep: Tensor, num_classes: int) -> Tensor:
    """Return the class where kept, and C + any class elsewhere.

    One entry for all that is not kept would do, but adding to the same number again and again is slow: each addition
    waits for the one before.
    """
    return torch.add(target.clamp(0, num_classes - 1), (~keep).long(), alpha=num_classes)
