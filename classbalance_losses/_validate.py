"""Errors that teach: what was expected, what came, and the remedy. Nothing is ever repaired here."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classbalance_losses import _validate_label_remedies as label_remedies
from classbalance_losses import _validate_remedies as remedies
from classbalance_losses._distributed import GroupObject, ProcessGroup
from classbalance_losses.kernels.call import accumulation_dtype
from classbalance_losses.kernels.plain import can_read_values, keepable

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INDICES = (torch.uint8, torch.int16, torch.int32, torch.int64)

Numbers = Tensor | Sequence[float] | np.ndarray[Any, Any]  # one for each class

# Masks of a whole map would be fresh memory, whose page faults cost more than the check.
_LABELS_AT_ONCE = 1 << 17
_LABELS_END = 1 << 63  # no tensor of labels has one beyond


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


def check_upsample(upsample: str | None, align_corners: bool) -> None:
    """Check the two options of the interpolation."""
    if upsample not in (None, "linear"):
        raise ValueError(
            f"Expected upsample to be one of 'linear', got {upsample!r}. In 2 or 3 axes it is bilinear or trilinear: "
            'pass upsample="linear".'
        )
    check_flag("align_corners", align_corners)
    if align_corners and upsample is None:
        raise ValueError('Expected upsample="linear" with align_corners=True, got upsample=None.')


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


def check_class_vector(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Check that a per-class vector has one entry for each class, or for each label, absent and present."""
    if len(shape) > 1 and tuple(value.shape) != shape:
        raise ValueError(
            f"Expected {name} of shape {shape}, for each label of input absent and present, or (2,) for all, got "
            f"{tuple(value.shape)}. For the numbers of the labels where they are present pass "
            f"torch.stack([torch.ones_like({name}), {name}], -1)."
        )
    num_classes = shape[0]
    if tuple(value.shape) != shape:
        remedy = f" {remedies.of_class_vector_shape(name, value)}" if value.ndim != 1 else ""
        raise ValueError(
            f"Expected {name} of shape ({num_classes},), one entry for each of the {num_classes} classes of input, "
            f"got {tuple(value.shape)}.{remedy}"
        )


def class_vector_of_call(name: str, value: object, input: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the numbers of the classes that a call was given, on the logits' device; a tensor keeps its graph.

    ``shape`` is (C,), or (L, 2) of many labels, for which (2,) does as well.

    Raises:
        ValueError: if it has not one number for each class, or they are negative or not finite; and for a tensor on
            another device, which each call would copy, and wait for.
        TypeError: if it holds no numbers.
    """
    vector = as_numbers(name, value)
    if vector.shape == (2,) and len(shape) > 1:
        vector = vector.expand(shape)
    check_class_vector(name, vector, shape)
    check_class_values(name, vector)
    if not isinstance(value, Tensor):  # an array is of float64, as a rule, which not every device has
        return vector.to(accumulation_dtype(input.dtype)).to(input.device)
    check_class_device(name, vector, input)
    return keepable(vector)


def check_class_device(name: str, vector: Tensor, input: Tensor) -> None:
    """Check that the numbers of the classes are where the logits are."""
    if vector.device != input.device:
        raise ValueError(
            f"Expected {name} on {input.device}, where input is, got it on {vector.device}. Move it once: the loss "
            f"module by .to({str(input.device)!r}), which takes its {name} along, or the tensor itself."
        )


def as_numbers(name: str, value: object) -> Tensor:
    """Turn an array or a sequence of numbers, one a class, into a tensor; a tensor stays what it is.

    Raises:
        TypeError: if it holds no numbers in the order of the classes, as a dict does not.
    """
    if isinstance(value, Tensor):
        if value.is_complex():
            raise TypeError(f"Expected real {name}, got dtype {value.dtype}. Pass {name}.real.")
        return value
    array = (
        np.array(value) if hasattr(value, "__array__") else None
    )  # a copy: torch takes no negative strides
    if array is not None and array.dtype.kind in "biuf":
        return torch.from_numpy(array)
    if isinstance(value, Sequence) and value and all(isinstance(number, Real) for number in value):
        integers = all(isinstance(number, Integral) for number in value)
        return torch.tensor(value, dtype=torch.int64 if integers else torch.float32, device="cpu")
    if isinstance(value, Sequence) and value and all(isinstance(number, Tensor) for number in value):
        return torch.stack(tuple(value))
    raise TypeError(
        f"Expected {name} to be a tensor, an array or a sequence of numbers, one for each class, got "
        f"{value!r}. {remedies.of_class_numbers(name, value)}"
    )


def as_class_vector(name: str, value: object, task: str = "multiclass") -> Tensor:
    """Turn a vector of non-negative numbers, one a class, into a detached float tensor (a copy).

    With the task "multilabel" it may be of shape (L, 2), each label's numbers where it is absent and present.
    """
    vector = as_numbers(name, value).detach().clone()
    if not (isinstance(value, Tensor) and vector.is_floating_point()):
        vector = vector.float()  # an array is of float64, as a rule, which not every device has
    is_of_labels = task == "multilabel" and vector.ndim == 2 and vector.shape[1] == 2
    if not is_of_labels and (vector.ndim != 1 or vector.numel() < 2):
        raise ValueError(
            f"Expected {name} of shape (C,), one number for each class, got {tuple(vector.shape)}. "
            f"{remedies.of_class_vector_shape(name, vector)}"
        )
    check_class_values(name, vector)
    return vector


def check_class_values(name: str, vector: Tensor) -> None:
    """Check that the numbers of the classes are finite and not negative (values are read on the CPU alone)."""
    if not can_read_values(vector) or not vector.numel():
        return
    low, high = torch.aminmax(vector.detach())
    if not (float(low) >= 0 and float(high) < math.inf):  # NaN is neither
        raise ValueError(
            f"Expected finite, non-negative {name}, got {vector.tolist()}. A class of weight 0 does not count: pass "
            f"torch.as_tensor({name}).nan_to_num(0, 0, 0).clamp(min=0) where those are to have no weight."
        )


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Check that an option is one of its values."""
    if value not in choices:
        raise ValueError(f"Expected {name} to be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_flag(name: str, value: object) -> None:
    """Check that an option is true or false: any text, "no" too, would count as true."""
    if not isinstance(value, bool):
        raise TypeError(f"Expected {name} to be a bool, got {value!r}. Pass {name}=True or {name}=False.")


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
        number = f"{name}.item()" if name.isidentifier() else "its item()"
        one = f" Pass {number}." if getattr(value, "ndim", 1) == 0 else ""
        raise TypeError(f"Expected {name} to be a number, got {type(value).__name__}.{one}")
    if (low < value if open_low else low <= value) and value <= high:
        return
    bracket = "(" if open_low else "["
    raise ValueError(f"Expected {name} in {bracket}{low}, {high}], got {value}.")


def check_common(ignore_index: int | Sequence[int], reduction: str, process_group: ProcessGroup) -> None:
    """Check the three options that every loss has."""
    as_labels(ignore_index)
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    if isinstance(process_group, str):
        check_choice("process_group", process_group, ("world",))
    elif process_group is not None and not isinstance(process_group, GroupObject):
        raise TypeError(
            f"Expected process_group to be None, 'world' or a torch.distributed.ProcessGroup, got {process_group!r}. "
            'Pass process_group="world" for all ranks, or what torch.distributed.new_group(ranks) returns on its ranks.'
        )


def as_label(ignore_index: int, *, several: bool = False) -> int:
    """Return ``ignore_index`` as an int: an integer of numpy's, or a tensor of one, is one too.

    ``several`` says whether there might be more of them.

    Raises:
        TypeError: if it is no integer.
    """
    label = ignore_index if isinstance(ignore_index, int) else _as_int(ignore_index)
    if label is not None and not isinstance(label, bool) and -_LABELS_END <= label < _LABELS_END:
        return label
    raise TypeError(
        f"Expected ignore_index to be an int, got {ignore_index!r}. "
        f"{remedies.of_ignore_index(ignore_index, several=several)}"
    )


def _as_int(value: Any) -> int | None:
    try:
        return None if getattr(value, "dtype", None) == torch.bool else operator.index(value)
    except TypeError:
        return None


def as_labels(ignore_index: int | Sequence[int]) -> int | tuple[int, ...]:
    """Return ``ignore_index`` as `as_label` does, or several, of which there is one at least.

    Raises:
        TypeError: if it is neither.
    """
    if isinstance(ignore_index, (tuple, list)) and ignore_index:
        labels = tuple(dict.fromkeys(as_label(label, several=True) for label in ignore_index))
        return labels if len(labels) > 1 else labels[0]
    return as_label(ignore_index, several=True)  # type: ignore[arg-type]
