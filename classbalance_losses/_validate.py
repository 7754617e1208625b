"""Errors that teach: what was expected, what came, and the remedy. Nothing is ever repaired here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from classbalance_losses import _validate_label_remedies as label_remedies
from classbalance_losses import _validate_remedies as remedies
from classbalance_losses.kernels.plain import can_read_values

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INDICES = (torch.uint8, torch.int16, torch.int32, torch.int64)

# Masks of a whole map would be fresh memory, whose page faults cost more than the check.
_LABELS_AT_ONCE = 1 << 17


def check_tensor(name: str, value: object, axes: int | None = None) -> None:
    """Check that an argument is a tensor; ``axes`` is the number that it should have, where that is known."""
    if not isinstance(value, Tensor):
        remedy = remedies.of_type(name, value, axes)
        raise TypeError(f"Expected {name} to be a torch.Tensor, got {type(value).__name__}. {remedy}")


def check_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Check that two tensors lie on one device."""
    if value.device != other.device:
        raise ValueError(
            f"Expected {name} on the device of {other_name}, {other.device}, got {value.device}. "
            f"Pass {name}.to({other_name}.device)."
        )


def check_input_target(input: Tensor, target: Tensor, ignore_index: int, upsample: str | None = None) -> None:
    """Check logits (N, C, *) against class indices (N, *), of another size with ``upsample``; not their values.

    Raises:
        ValueError: if the shapes or devices do not fit, or there are fewer than two classes.
        TypeError: if one is no tensor, or of a dtype that the losses do not take.
    """
    check_tensor("input", input, target.ndim + 1 if isinstance(target, Tensor) else None)
    check_tensor("target", target, input.ndim - 1)
    _check_logits(input, target)
    if target.dtype not in INDICES:
        raise TypeError(
            f"Expected target of class indices (uint8, int16, int32 or int64), got dtype {target.dtype}. "
            f"{label_remedies.of_target_dtype(input, target, ignore_index)}"
        )
    check_device("target", target, "input", input)
    if not _fit(input, target, upsample):
        raise ValueError(
            f"Expected target of shape {_target_shape(input, upsample)} for input of shape {tuple(input.shape)}, "
            f"got {tuple(target.shape)}. {label_remedies.of_target_shape(input, target, ignore_index, upsample)}"
        )


def _check_logits(input: Tensor, target: Tensor) -> None:
    if input.dtype not in FLOATS or target.dtype in FLOATS:
        swapped = remedies.of_swapped(input, target)
        if swapped:
            raise TypeError(
                f"Expected floating-point logits and class indices, got input of dtype {input.dtype} and shape "
                f"{tuple(input.shape)}, target of dtype {target.dtype} and shape {tuple(target.shape)}. {swapped}"
            )
    if input.dtype not in FLOATS:
        raise TypeError(
            f"Expected floating-point logits, got input of dtype {input.dtype}. {remedies.of_logits(input)}"
        )
    if input.ndim < 2:
        raise ValueError(
            f"Expected input of shape (N, C, *), got {tuple(input.shape)}. For a single sample add the batch "
            "axis: input, target = input.unsqueeze(0), target.unsqueeze(0)."
        )
    if input.shape[1] < 2:
        raise ValueError(
            f"Expected logits of at least 2 classes on axis 1, got input of shape {tuple(input.shape)}. "
            f"{remedies.of_one_class(input.shape[1])}"
        )


def _fit(input: Tensor, target: Tensor, upsample: str | None) -> bool:
    if upsample is None:
        return target.shape == (input.shape[0], *input.shape[2:])
    if target.ndim != input.ndim - 1 or target.shape[0] != input.shape[0]:
        _check_axes(input)
        return False
    check_upsampled(input, target, target.shape[1:])
    return True


def check_upsampled(input: Tensor, target: Tensor, size: Sequence[int]) -> None:
    """Check that logits can be interpolated to the target's spatial size."""
    _check_axes(input)
    if not all(input.shape[2:]) or not all(size):
        raise ValueError(
            f"Expected spatial axes of at least 1 to interpolate, got input of shape {tuple(input.shape)} and target "
            f"of shape {tuple(target.shape)}."
        )


def _check_axes(input: Tensor) -> None:
    if not 1 <= input.ndim - 2 <= 3:
        raise ValueError(
            f"Expected input of 1 to 3 spatial axes with upsample, got shape {tuple(input.shape)}. Pass upsample=None."
        )


def _target_shape(input: Tensor, upsample: str | None) -> str:
    if upsample is None:
        return str((input.shape[0], *input.shape[2:]))
    return f"({', '.join([str(input.shape[0]), *['*'] * (input.ndim - 2)])})"


def check_target_range(target: Tensor, num_classes: int, ignore_index: int, name: str = "target") -> None:
    """Check that every label is a class or ``ignore_index``: read on the CPU, asserted on the device on CUDA."""
    if target.device.type == "cuda":
        index = target.long()
        fits = (index == ignore_index) | ((index >= 0) & (index < num_classes))
        torch._assert_async(fits.all(), out_of_bounds(num_classes))
    elif target.numel() and can_read_values(target):
        for labels in torch.split(target.flatten(), _LABELS_AT_ONCE):
            _check_labels(labels, target, num_classes, ignore_index, name)


def out_of_bounds(num_classes: int) -> str:
    """Say what an assertion on the device found."""
    return f"A target is out of bounds for {num_classes} classes."


def _check_labels(labels: Tensor, target: Tensor, num_classes: int, ignore_index: int, name: str) -> None:
    """Check some of the target's labels."""
    if _are_classes(labels, num_classes):
        return
    index = labels.long()
    index = index * (index != ignore_index)
    if not _are_classes(index, num_classes):
        outside = int(index[(index < 0) | (index >= num_classes)][0])
        raise IndexError(
            f"Target {outside} is out of bounds for {num_classes} classes. "
            f"{label_remedies.of_label_outside(outside, target, num_classes, ignore_index, name)}"
        )


def _are_classes(target: Tensor, num_classes: int) -> bool:
    low, high = torch.aminmax(target)
    return int(low) >= 0 and int(high) < num_classes


def check_pixel_weight(pixel_weight: Tensor | None, target: Tensor) -> None:
    """Check the optional weights (N, *) against the target.

    Raises:
        TypeError: if it is no tensor, or its dtype not floating point.
        ValueError: if the shape or device is not the target's, or (read on the CPU) a weight is negative.
    """
    if pixel_weight is None:
        return
    check_tensor("pixel_weight", pixel_weight, target.ndim)
    if pixel_weight.dtype not in FLOATS:
        raise TypeError(
            f"Expected pixel_weight of a floating-point dtype, got {pixel_weight.dtype}. Pass pixel_weight.float()."
        )
    check_device("pixel_weight", pixel_weight, "target", target)
    if pixel_weight.shape != target.shape:
        raise ValueError(
            f"Expected pixel_weight of the target's shape {tuple(target.shape)}, got {tuple(pixel_weight.shape)}. "
            f"{remedies.of_pixel_weight_shape(pixel_weight, target)}"
        )
    if can_read_values(pixel_weight) and bool((pixel_weight < 0).any()):
        raise ValueError(
            "Expected non-negative pixel_weight, got a negative one. Pass pixel_weight.clamp(min=0)."
        )
