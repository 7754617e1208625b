"""Sums over the pixels of each class on a CPU, range by range.

Indices and float64 copies of a whole map would be fresh memory, whose page faults take longer than the sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

_PIXELS = 1 << 17


def class_sums(value: Tensor, target: Tensor, keep: Tensor, num_classes: int) -> Tensor:
    """Return the float64 sum of ``value`` over the kept pixels of each class, (C,)."""
    total = torch.zeros(num_classes + 1, dtype=torch.float64)  # the last entry takes what is not kept
    ranges = (torch.split(x.flatten(), _PIXELS) for x in (value, target, keep))
    for values, labels, kept in zip(*ranges, strict=True):
        total.scatter_add_(0, torch.where(kept, labels, num_classes), values.double())
    return total[:num_classes]
