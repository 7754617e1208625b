"""Which pixels count, by how much, and their maps as rows: what plain PyTorch and the losses share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from classbalance_losses.kernels.call import Hard, Labels
from classbalance_losses.kernels.plain import can_read_values
from classbalance_losses.kernels.selection import ordered_bits


def indices(labels: Labels) -> tuple[Tensor, Tensor]:
    """Return the class indices as int64, and the mask of those that count.

    Comparing a uint8 tensor with -100 would wrap the -100 round to 156; so it cannot.
    """
    target = labels.target.long()
    return target, target != labels.ignore_index


def members(hard: Hard, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Return which pixels are in H, as a whole or in part, and which in part, in the shape of ``keep`` (N, *)."""
    rows = hard.bits.shape[0]
    bits, keep_rows = ordered_bits(hard.ranked).reshape(rows, -1), keep.reshape(rows, -1)
    threshold = hard.bits.unsqueeze(1)
    tied = keep_rows & (bits == threshold) & (hard.share > 0).unsqueeze(1)
    return (keep_rows & (bits > threshold) | tied).view(keep.shape), tied.view(keep.shape)


def shares_of(hard: Hard, keep: Tensor) -> Tensor:
    """Return h of each pixel (N, *), 0 off H."""
    chosen, tied = members(hard, keep)
    rows = hard.bits.shape[0]
    share = torch.where(tied.reshape(rows, -1), hard.share.unsqueeze(1), chosen.reshape(rows, -1))
    return share.view(chosen.shape)


def sum_pixels(values: Tensor) -> Tensor:
    """Return the sums of each row and class (M, C)."""
    return values.unsqueeze(-1).flatten(2).sum(2)  # (N, C) has no spatial axis


def class_rows(input: Tensor) -> Tensor:
    """(N, C, *) → (N, C, P), a copy only where the strides of the spatial axes ask for it; (N, C) → (1, C, N)."""
    if input.ndim == 2:
        return input.T.unsqueeze(0)
    return input.flatten(2)


def per_pixel(class_weight: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    """Return each kept pixel's class weight, (N, *), and 0 elsewhere."""
    table = F.pad(class_weight, (0, 1))  # the last entry is for pixels that are not kept
    index = torch.where(keep, target, class_weight.shape[0])
    return table.index_select(0, index.flatten()).view(index.shape)


def kept_weight(pixel_weight: Tensor | None, keep: Tensor) -> Tensor | None:
    """Return the pixel weights, 0 where not kept (a weight there may be NaN)."""
    return None if pixel_weight is None else torch.where(keep, pixel_weight, 0)


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
