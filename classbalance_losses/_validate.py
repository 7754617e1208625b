"""Errors that teach: what was expected, what came, and the remedy. Nothing is ever repaired here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from classbalance_losses._distributed import ProcessGroup
from classbalance_losses.kernels import numba_threads

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INDICES = (torch.uint8, torch.int16, torch.int32, torch.int64)

# Masks of a whole map would be fresh memory, whose page faults cost more than the check.
_LABELS_AT_ONCE = 1 << 17


def is_transformed(tensor: Tensor) -> bool:
    """Whether vmap or grad of ``torch.func`` has wrapped the tensor; there is no public test for it."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def can_read_values(tensor: Tensor) -> bool:
    """Whether a value may be looked at: on the CPU, eagerly, outside ``torch.func`` transforms and tracers.

    Elsewhere a look would synchronise the device or break the graph.
    """
    return (
        not torch.compiler.is_compiling()
        and tensor.device.type == "cpu"
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and not is_transformed(tensor)
    )


def check_input_target(input: Tensor, target: Tensor, ignore_index: int, upsample: str | None = None) -> None:
    """Check logits (N, C, *) against class indices (N, *), of another size with ``upsample``.

    Raises:
        ValueError: if the shapes do not fit, or there are fewer than two classes.
        TypeError: if a dtype is not one that the losses take.
        IndexError: if a target is neither a class nor ``ignore_index`` (values are read on the CPU; on CUDA
            a device-side assertion that does not synchronise takes its place).
    """
    if input.dtype not in FLOATS:
        raise TypeError(
            f"Expected floating-point logits, got input of dtype {input.dtype}. Call .float() on it."
        )
    if input.ndim < 2:
        raise ValueError(
            f"Expected input of shape (N, C, *), got {tuple(input.shape)}. For a single sample add the batch "
            "axis: input.unsqueeze(0), target.unsqueeze(0)."
        )
    if input.shape[1] < 2:
        raise ValueError(
            f"Expected logits of at least 2 classes on axis 1, got input of shape {tuple(input.shape)}. A softmax "
            "over one class is 1 whatever the logit: for a binary problem predict 2 classes."
        )
    _check_target_dtype(input, target)
    if upsample is None:
        _check_target_shape(input, target)
    else:
        _check_target_of_other_size(input, target)
    check_target_range(target, input.shape[1], ignore_index)


def _check_target_dtype(input: Tensor, target: Tensor) -> None:
    if target.dtype in INDICES:
        return
    remedy = "Call .long() on it."
    if target.shape == input.shape:
        remedy = "It has the shape of one-hot or soft labels: pass class indices, target.argmax(1)."
    raise TypeError(
        f"Expected target of class indices (uint8, int16, int32 or int64), got dtype {target.dtype}. {remedy}"
    )


def _check_target_shape(input: Tensor, target: Tensor) -> None:
    expected = (input.shape[0], *input.shape[2:])
    if tuple(target.shape) == expected:
        return
    if tuple(target.shape) == (expected[0], 1, *expected[1:]):
        remedy = "Did you mean target.squeeze(1)?"
    elif target.shape == input.shape:
        remedy = "It looks one-hot: pass class indices, target.argmax(1)."
    elif target.shape == input.shape[:-1]:
        remedy = "The class axis of input is axis 1: did you mean input.movedim(-1, 1)?"
    elif target.ndim == len(expected) and target.shape[0] == expected[0]:
        remedy = 'Pass upsample="linear" to interpolate the logits to the target\'s size.'
    else:
        remedy = "The class axis of input is axis 1."
    raise ValueError(
        f"Expected target of shape {expected} for input of shape {tuple(input.shape)}, "
        f"got {tuple(target.shape)}. {remedy}"
    )


def _check_target_of_other_size(input: Tensor, target: Tensor) -> None:
    axes = input.ndim - 2
    if not 1 <= axes <= 3:
        raise ValueError(
            f"Expected input of 1 to 3 spatial axes with upsample, got shape {tuple(input.shape)}. Leave upsample=None."
        )
    if target.ndim != axes + 1 or target.shape[0] != input.shape[0]:
        remedy = "Did you mean target.squeeze(1)?" if target.ndim == axes + 2 else ""
        raise ValueError(
            f"Expected target of {axes + 1} axes and {input.shape[0]} images for input of shape {tuple(input.shape)}, "
            f"got {tuple(target.shape)}. {remedy}".rstrip()
        )
    if not all(input.shape[2:]) or not all(target.shape[1:]):
        raise ValueError(
            f"Expected spatial axes of at least 1 to interpolate, got input of shape {tuple(input.shape)} and target "
            f"of shape {tuple(target.shape)}."
        )


def check_upsample(upsample: str | None, align_corners: bool) -> None:
    """Check the two options of the interpolation."""
    if upsample is not None:
        check_choice("upsample", upsample, ("linear",))
    if not isinstance(align_corners, bool):
        raise TypeError(f"Expected align_corners to be a bool, got {type(align_corners).__name__}.")
    if align_corners and upsample is None:
        raise ValueError('Expected upsample="linear" with align_corners=True, got upsample=None.')


def check_target_range(target: Tensor, num_classes: int, ignore_index: int) -> None:
    """Check that every label is a class or ``ignore_index``: read on the CPU, asserted on the device on CUDA."""
    if target.device.type == "cuda":
        index = target.long()
        fits = (index == ignore_index) | ((index >= 0) & (index < num_classes))
        torch._assert_async(fits.all(), f"A target is out of bounds for {num_classes} classes.")
    elif target.numel() and can_read_values(target) and not _fits(target, num_classes, ignore_index):
        for labels in torch.split(target.flatten(), _LABELS_AT_ONCE):
            _check_labels(labels, num_classes, ignore_index)


def _fits(target: Tensor, num_classes: int, ignore_index: int) -> bool:
    """Whether a compiled loop, where there is one, has found no label outside."""
    if target.dtype != torch.int64 or target.numel() < _LABELS_AT_ONCE or not numba_threads.can_compile():
        return False
    from classbalance_losses.kernels import numba_maps  # noqa: PLC0415 - an optional dependency

    return numba_maps.labels_outside(target, num_classes, ignore_index) == 0


def _check_labels(target: Tensor, num_classes: int, ignore_index: int) -> None:
    if _are_classes(target, num_classes):
        return
    index = target.long()
    index = index * (index != ignore_index)
    if not _are_classes(index, num_classes):
        outside = index[(index < 0) | (index >= num_classes)]
        raise IndexError(out_of_bounds(int(outside[0]), num_classes, ignore_index))


def _are_classes(target: Tensor, num_classes: int) -> bool:
    low, high = torch.aminmax(target)
    return int(low) >= 0 and int(high) < num_classes


def out_of_bounds(value: int, num_classes: int, ignore_index: int) -> str:
    """Say that a label is no class, and what the usual cause is."""
    message = f"Target {value} is out of bounds for {num_classes} classes."
    if value in (255, -1, -100):
        return f"{message} Did you mean ignore_index={value}?"
    return (
        f"{message} Expected 0 to {num_classes - 1}, or ignore_index={ignore_index}: "
        "check the labels' encoding and the number of logit channels."
    )


def check_pixel_weight(pixel_weight: Tensor | None, target: Tensor) -> None:
    """Check the optional weights (N, *) against the target.

    Raises:
        TypeError: if the dtype is not floating point.
        ValueError: if the shape is not the target's, or (read on the CPU) a weight is negative.
    """
    if pixel_weight is None:
        return
    if pixel_weight.dtype not in FLOATS:
        raise TypeError(
            f"Expected pixel_weight of a floating-point dtype, got {pixel_weight.dtype}. Call .float() on it."
        )
    if pixel_weight.shape != target.shape:
        raise ValueError(
            f"Expected pixel_weight of the target's shape {tuple(target.shape)}, got {tuple(pixel_weight.shape)}. "
            "Use expand_as(target) for a weight per image."
        )
    if can_read_values(pixel_weight) and bool((pixel_weight < 0).any()):
        raise ValueError("Expected non-negative pixel_weight, got a negative one. Use clamp(min=0).")


def check_class_vector(name: str, value: Tensor, num_classes: int) -> None:
    """Check that a per-class vector has one entry for each logit channel."""
    if tuple(value.shape) != (num_classes,):
        raise ValueError(
            f"Expected {name} of shape ({num_classes},), one entry for each of the {num_classes} classes of input, "
            f"got {tuple(value.shape)}."
        )


def as_class_vector(name: str, value: Tensor | Sequence[float]) -> Tensor:
    """Turn a vector of non-negative numbers, one a class, into a detached float tensor (a copy)."""
    if not isinstance(value, Tensor):  # an array has a dtype of its own, a list has none
        own = None if hasattr(value, "dtype") else torch.float32
        value = torch.as_tensor(value, dtype=own, device="cpu")
    vector = value.detach().clone()
    if not vector.is_floating_point():
        vector = vector.float()
    if vector.ndim != 1 or vector.numel() < 2:
        raise ValueError(
            f"Expected {name} of shape (C,), one number for each class, got {tuple(vector.shape)}."
        )
    if can_read_values(vector) and not bool((torch.isfinite(vector) & (vector >= 0)).all()):
        raise ValueError(f"Expected finite, non-negative {name}, got {vector.tolist()}.")
    return vector


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Check that an option is one of its values."""
    if value not in choices:
        raise ValueError(f"Expected {name} to be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_range(
    name: str,
    value: float,
    low: float,
    high: float = math.inf,
    *,
    open_low: bool = False,
) -> None:
    """Check ``low <= value <= high`` (``low < value`` with ``open_low``); NaN never passes.

    Raises:
        ValueError: if the value lies outside.
        TypeError: if it is not a number.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"Expected {name} to be a number, got {type(value).__name__}.")
    if (low < value if open_low else low <= value) and value <= high:
        return
    bracket = "(" if open_low else "["
    raise ValueError(f"Expected {name} in {bracket}{low}, {high}], got {value}.")


def check_call(
    input: Tensor,
    target: Tensor,
    pixel_weight: Tensor | None,
    *,
    upsample: str | None,
    align_corners: bool,
    ignore_index: int,
    reduction: str,
    process_group: ProcessGroup,
) -> None:
    """Check what every per-pixel loss is called with."""
    check_common(ignore_index, reduction, process_group)
    check_upsample(upsample, align_corners)
    check_input_target(input, target, ignore_index, upsample)
    check_pixel_weight(pixel_weight, target)


def check_common(ignore_index: int, reduction: str, process_group: ProcessGroup) -> None:
    """Check the three options that every loss has."""
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"Expected ignore_index to be an int, got {type(ignore_index).__name__}.")
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    if isinstance(process_group, str):
        check_choice("process_group", process_group, ("world",))
