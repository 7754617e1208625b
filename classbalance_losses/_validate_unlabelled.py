"""Checks of a loss of logits alone, without labels; same manners as ``_validate``."""

from __future__ import annotations

from torch import Tensor

from classbalance_losses import _validate_remedies as remedies
from classbalance_losses._validate import check_device
from classbalance_losses._validate_features import check_floats, check_mask
from classbalance_losses.kernels.plain import can_read_values


def check_unlabelled(input: Tensor, mask: Tensor | None, pixel_weight: Tensor | None) -> None:
    """Check logits (N, C, *), and which pixels count and how much, (N, *) each.

    Raises:
        TypeError: if one is no tensor, or of another dtype.
        ValueError: if shapes or devices do not fit, or (read on the CPU) a weight is negative.
    """
    check_floats("input", input)
    if input.ndim < 2:
        raise ValueError(
            f"Expected input of shape (N, C, *), got {tuple(input.shape)}. For a single sample add the batch axis: "
            "input.unsqueeze(0)."
        )
    if input.shape[1] < 2:
        raise ValueError(
            f"Expected logits of at least 2 classes on axis 1, got input of shape {tuple(input.shape)}. One logit a "
            "pixel is that of the second of two classes: torch.cat([torch.zeros_like(input), input], 1)."
        )
    size = (input.shape[0], *input.shape[2:])
    if mask is not None:
        check_mask("mask", mask, size)
        check_device("mask", mask, "input", input)
    if pixel_weight is not None:
        _check_pixel_weight(pixel_weight, size)
        check_device("pixel_weight", pixel_weight, "input", input)


def _check_pixel_weight(pixel_weight: Tensor, size: tuple[int, ...]) -> None:
    check_floats("pixel_weight", pixel_weight)
    if tuple(pixel_weight.shape) != size:
        raise ValueError(
            f"Expected pixel_weight of shape {size}, got {tuple(pixel_weight.shape)}. "
            f"{remedies.of_map_shape('pixel_weight', pixel_weight, size)}"
        )
    if can_read_values(pixel_weight) and bool((pixel_weight < 0).any()):
        raise ValueError(
            "Expected non-negative pixel_weight, got a negative one. Pass pixel_weight.clamp(min=0)."
        )
