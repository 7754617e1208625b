"""The logits of a call: at the target's size, or to be interpolated to it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from classbalance_losses._validate import can_read_values
from classbalance_losses.kernels.blocks import Resize, accumulation_dtype, is_thin


class Logits(NamedTuple):
    """Logits (N, C, *) and, where they are of another size than the target, how to resize them.

    It has no properties: torch 2.6 cannot trace those of a named tuple.
    """

    input: Tensor
    resize: Resize | None = None

    def full_size(self) -> Tensor:
        """Return the logits at the target's size."""
        return self.input if self.resize is None else self.resize(self.input)

    def detach(self) -> Logits:
        """Return the same without a graph."""
        return Logits(self.input.detach(), self.resize)


def logits_for(input: Tensor, target: Tensor, upsample: str | None, align_corners: bool) -> Logits:
    """Return the logits of a call whose arguments are checked."""
    if upsample is None:
        return Logits(input)
    resize = Resize(tuple(target.shape[1:]), align_corners)
    if can_read_values(input) and is_thin(input.shape[1], resize.size):  # 1-D, and tall with short rows
        return Logits(resize(input.to(accumulation_dtype(input.dtype))))  # a half would lose digits
    return Logits(input, resize)


def full_size_features(
    features: Tensor | None, input: Tensor, target: Tensor, upsample: str | None, align_corners: bool
) -> Tensor | None:
    """Return constant features resized like the logits: interpolation and the last layer commute."""
    if features is None:
        return None
    constant = features.detach().to(accumulation_dtype(input.dtype))
    return constant if upsample is None else Resize(tuple(target.shape[1:]), align_corners)(constant)
