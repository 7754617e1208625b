"""Stage 1: from logits to a number for each pixel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def long_target(target: Tensor) -> Tensor:
    """Return the class indices as int64.

    Comparing a uint8 tensor with -100 would wrap the -100 round to 156; after this it cannot.
    """
    return target.long()


def valid_pixels(target: Tensor, ignore_index: int) -> Tensor:
    """Return the mask (N, *) of the pixels that count; ``target`` is int64."""
    return target != ignore_index


def pixel_log_softmax(input: Tensor, keep: Tensor) -> Tensor:
    """Return log-probabilities (N, C, *) in float32 or, for float64 logits, float64.

    Logits of dropped pixels are replaced, not multiplied by 0: they may be NaN or inf, and their gradient
    is exactly 0.
    """
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    return F.log_softmax(torch.where(keep.unsqueeze(1), input, 0), dim=1, dtype=dtype)


def pick_class(values: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    """Return ``values[n, target, ...]`` (N, *) out of (N, C, *), and 0 where not kept."""
    index = torch.where(keep, target, 0).unsqueeze(1)
    return torch.where(keep, values.gather(1, index).squeeze(1), 0)


def pixel_cross_entropy(input: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    r"""Return :math:`\ell_i = -\log p_{i, y_i}` (N, *), 0 where not kept."""
    return -pick_class(pixel_log_softmax(input, keep), target, keep)


def sum_of_others(values: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    """Return the sum of (N, C, *) over the classes other than the target, (N, *), and 0 where not kept."""
    classes = torch.arange(values.shape[1], device=values.device).view(-1, *[1] * (values.ndim - 2))
    other = (classes != target.unsqueeze(1)) & keep.unsqueeze(1)
    return torch.where(other, values, 0).sum(1)
