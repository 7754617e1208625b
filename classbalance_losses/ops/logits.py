"""The logits of a call: at the target's size, or to be interpolated to it."""

from __future__ import annotations

from torch import Tensor

from classbalance_losses.kernels.call import Logits, Resize, accumulation_dtype


def logits_for(input: Tensor, target: Tensor, upsample: str | None, align_corners: bool) -> Logits:
    """Return the logits of a call whose arguments are checked."""
    return Logits(input, None if upsample is None else Resize(tuple(target.shape[1:]), align_corners))


def full_size_features(features: Tensor | None, logits: Logits) -> Tensor | None:
    """Return constant features resized like the logits: interpolation and the last layer commute."""
    if features is None:
        return None
    constant = features.detach().to(accumulation_dtype(logits.input.dtype))
    return constant if logits.resize is None else logits.resize(constant)
