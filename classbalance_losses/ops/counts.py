"""Sums over the pixels of each class, where they are kept. No gradient flows through any of them."""

from __future__ import annotations

import torch
from torch import Tensor

from classbalance_losses._dispatch import backend_for_maps
from classbalance_losses.kernels.call import Labels
from classbalance_losses.ops.precision import without_autocast


def class_counts(target: Tensor, keep: Tensor, num_classes: int) -> Tensor:
    """Return the number of kept pixels of each class, (C,) of int64."""
    labels = kept_labels(target, keep, num_classes)
    return backend_for_maps(labels).class_sums(labels).number[0]


def class_sums(value: Tensor, target: Tensor, keep: Tensor, num_classes: int) -> Tensor:
    """Return the sum of ``value`` over the kept pixels of each class, (C,), in float32 or, for float64, float64."""
    labels = kept_labels(target, keep, num_classes)
    value = value.detach().to(torch.promote_types(value.dtype, torch.float32))
    sums = backend_for_maps(labels, value).class_sums(labels, value).value
    assert sums is not None
    return sums[0]


def kept_labels(target: Tensor, keep: Tensor, num_classes: int) -> Labels:
    """Return class indices of which only those that are kept count."""
    return Labels(torch.where(keep, target.long(), -1), num_classes, -1)


def class_vector_sums(vectors: Tensor, target: Tensor, keep: Tensor, num_classes: int) -> Tensor:
    """Return the sum of ``vectors`` (P, D) over the kept rows of each class, (C, D).

    A product with the membership matrix rather than a scatter: its order of summation is fixed.
    """
    classes = torch.arange(num_classes, dtype=torch.int64, device=target.device)
    member = (target == classes.unsqueeze(1)) & keep
    rows = torch.where(keep.unsqueeze(1), vectors.detach(), 0)
    with without_autocast(vectors):
        return member.to(rows.dtype) @ rows
