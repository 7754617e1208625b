"""Selecting floats by a mask on a CPU, as a product of whole numbers.

torch's select takes a branch for each entry, and where neighbours differ the processor often guesses it wrong. Read as
a whole number, any float's bits times 0 are those of 0.0, a NaN's too: such a product selects without a branch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def bits_of(values: Tensor) -> Tensor:
    """View floats of 32 or 64 bits as whole numbers."""
    return values.view(torch.int64 if values.dtype == torch.float64 else torch.int32)


def kept_or_zero(values: Tensor, keep: Tensor) -> Tensor:
    """Return float32 or float64 where kept, and 0 elsewhere, whatever stands there."""
    return (bits_of(values) * keep).view(values.dtype)
