"""Weights of classes from counts."""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_power(count: Tensor, exponent: float, dtype: torch.dtype) -> Tensor:
    """Return ``count ** -exponent`` (C,) in ``dtype``, and 0 for an absent class, whatever the exponent."""
    return torch.where(count > 0, count.to(dtype) ** -exponent, 0)
