"""What a backend is asked, and what it answers: the same few named tuples for all three."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

NARROW = 255  # an ignored label as a byte
Fields = TypeVar("Fields", bound=NamedTuple)
_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float64 for float64 and float32 for all else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# Named tuples' own methods for these two break the compiler's graph in torch 2.6.
def named(fields: NamedTuple) -> dict[str, Any]:
    """Return the values of a named tuple by their names."""
    return dict(zip(type(fields)._fields, fields, strict=True))


def replaced(fields: Fields, **changes: Any) -> Fields:
    """Return a named tuple with other values of some fields."""
    kind: Callable[..., Fields] = type(fields)
    return kind(**{**named(fields), **changes})


class Labels(NamedTuple):
    """Class indices of a call (N, *), as they came: uint8, int16, int32 or int64, of any strides.

    Those that count are in [0, C), or about to be refused; those equal to ``ignore_index`` do not count.
    """

    target: Tensor
    num_classes: int
    ignore_index: int


class Resize(NamedTuple):
    """Linear interpolation to a spatial size, as ``F.interpolate`` does it without antialiasing."""

    size: tuple[int, ...]
    align_corners: bool

    def __call__(self, input: Tensor) -> Tensor:
        """Resize (N, C, *) of one, two or three spatial axes."""
        mode = _MODES[len(self.size)]
        return F.interpolate(input, self.size, mode=mode, align_corners=self.align_corners)


class Logits(NamedTuple):
    """Logits (N, C, *) and how they are read: resized where they are of another size than the target, then shifted.

    It has no properties: torch 2.6 cannot trace those of a named tuple.
    """

    input: Tensor
    resize: Resize | None = None
    bias: Tensor | None = None
    """What is added to the logits of each class (C,), a constant in the loss's dtype."""
    single: bool = False
    """Whether the input (N, 1, *) is one logit z a pixel, which stands for the logits 0 and z of two classes."""

    def full_size(self) -> Tensor:
        """Return the logits of all classes at the target's size."""
        input = self.input if self.resize is None else self.resize(self.input)
        if self.single:
            input = torch.cat([torch.zeros_like(input), input], 1)
        if self.bias is None:
            return input
        return input.to(self.bias.dtype) + self.bias.view(-1, *[1] * (input.ndim - 2))


class Share(NamedTuple):
    """How many of a row's candidates are in H: k = max(at_least, floor(part · candidates)), at most all of them."""

    part: float
    at_least: int


class Hard(NamedTuple):
    """H of each row, where a row is an image or the whole batch: pixels above a threshold, and a part of those at it.

    A float without its sign has its bits in the order of the floats: bits are compared, not numbers.
    """

    ranked: Tensor
    """The losses that were ranked, float32 or float64 (N, *), constant."""
    bits: Tensor
    """The threshold's bits, without the sign, for each row: int64 (R,).

    Where k is 0 they are infinity's, for a NaN, which is above it, is not to be hidden.
    """
    share: Tensor
    """h, the part in which pixels at the threshold belong to H (R,), in the losses' dtype; 0 where k is 0."""


class ClassSums(NamedTuple):
    """Sums over the pixels that count of each row and class, (R, C)."""

    number: Tensor
    """How many, int64; over H they are Σ h_i in the map's dtype."""
    value: Tensor | None
    """Σ h_i q_i value_i, with the gradient of the map."""
    squared: Tensor | None
    """Σ h_i q_i² squared_i, constant."""


class Overlap(NamedTuple):
    """Sums of probabilities over the pixels that count of each image and class, (N, C), with their gradient."""

    probability: Tensor
    """P = Σ_i q_i p_ic."""
    own: Tensor
    """I = Σ_{y_i = c} q_i p_ic."""


class Pass(NamedTuple):
    """What one pass over the logits yields beside the overlap; what was not asked for is ``None``."""

    overlap: Overlap
    value: Tensor | None
    """φ of each pixel (N, *), with its gradient."""
    error: Tensor | None
    """‖p - e_y‖² of each pixel (N, *), constant."""
    other: Tensor | None = None
    """Another form's φ, with its gradient."""


class WeightedSums(NamedTuple):
    """Scalars; where the norm is 0 nothing counts, and the mean is the total, 0."""

    mean: Tensor
    """total / norm, with the gradient of the map."""
    total: Tensor
    """Σ w_y q value, with the gradient of the map."""
    norm: Tensor
    """Σ w'_y, or the number of pixels that count: constant, unless w' is learned."""
