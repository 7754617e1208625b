"""Stage 4: from numbers for each class to weights for each pixel. No gradient flows through any of them."""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_power(count: Tensor, exponent: float) -> Tensor:
    """Return ``count ** -exponent`` (C,) in float64, and 0 for an absent class, whatever the exponent."""
    return torch.where(count > 0, count.double() ** -exponent, 0)


def per_pixel(class_weight: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    """Return each kept pixel's class weight, (N, *) in the dtype of ``class_weight``, and 0 elsewhere."""
    index = torch.where(keep, target, 0)
    picked = class_weight.detach().gather(0, index.flatten()).view(index.shape)
    return torch.where(keep, picked, 0)


def kept_weight(pixel_weight: Tensor | None, keep: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Return the constant pixel weights in ``dtype``, 0 where not kept (a weight there may be NaN)."""
    if pixel_weight is None:
        return None
    return torch.where(keep, pixel_weight.detach().to(dtype), 0)


def scaled(loss: Tensor, *weights: Tensor | None) -> Tensor:
    """Return the loss times those weights that are given, in the loss's dtype."""
    for weight in weights:
        if weight is not None:
            loss = loss * weight.to(loss.dtype)
    return loss
