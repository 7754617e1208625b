"""Stage 4: from numbers for each class to weights for each pixel. They may be learned: see `is_constant`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from classbalance_losses._dispatch import backend_for
from classbalance_losses._validate import can_read_values
from classbalance_losses.kernels import blocked_classes
from classbalance_losses.kernels.plain import is_constant
from classbalance_losses.ops.counts import blocked_from


def inverse_power(count: Tensor, exponent: float, dtype: torch.dtype) -> Tensor:
    """Return ``count ** -exponent`` (C,) in ``dtype``, and 0 for an absent class, whatever the exponent."""
    return torch.where(count > 0, count.to(dtype) ** -exponent, 0)


def per_pixel(class_weight: Tensor, target: Tensor, keep: Tensor, dtype: torch.dtype) -> Tensor:
    """Return each kept pixel's class weight, (N, *) in ``dtype``, and 0 elsewhere."""
    class_weight = class_weight.to(dtype)
    backend = backend_for(target, keep, blocked_from=blocked_from(has_loop=dtype == torch.float32))
    if backend == "blocked" and is_constant(class_weight):
        return blocked_classes.per_pixel(class_weight, target, keep)
    table = F.pad(class_weight, (0, 1))  # the last entry is for pixels that are not kept
    index = torch.where(keep, target, class_weight.shape[0])
    return table.index_select(0, index.flatten()).view(index.shape)


def kept_weight(pixel_weight: Tensor | None, keep: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Return the pixel weights in ``dtype``, 0 where not kept (a weight there may be NaN)."""
    if pixel_weight is None:
        return None
    return torch.where(keep, pixel_weight.to(dtype), 0)


def scaled(loss: Tensor, *weights: Tensor | None) -> Tensor:
    """Return the loss times those weights that are given, in the loss's dtype; 0 times an infinite loss is 0."""
    for weight in weights:
        if weight is not None:
            loss = _finite_where_weightless(loss, weight) * weight.to(loss.dtype)
    return loss


def _finite_where_weightless(loss: Tensor, weight: Tensor) -> Tensor:
    """Return the loss with 0 for inf where it has no weight; NaN stays NaN."""
    if can_read_values(loss) and loss.numel() and bool(loss.detach().amax() < torch.inf):
        return loss  # one look, where looking costs less than four new maps
    return torch.where((weight == 0) & (loss == torch.inf), 0, loss)
