"""Weights of classes from counts."""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_power(count: Tensor, exponent: float, dtype: torch.dtype) -> Tensor:
    """Return ``count ** -exponent`` (C,) in ``dtype``, and 0 for an absent class, whatever the exponent."""
    # Not `where`, which makes a tensor of its number first: a launch more.
    return (count.to(dtype) ** -exponent).masked_fill_(count <= 0, 0)
