"""Checks of the classes' numbers: weights, priors and counts, one for each class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classbalance_losses import _validate_remedies as remedies
from classbalance_losses.kernels.call import accumulation_dtype
from classbalance_losses.kernels.plain import can_read_values, keepable

Numbers = Tensor | Sequence[float] | np.ndarray[Any, Any]  # one for each class


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


def check_class_device(name: str, vector: Tensor, input: Tensor) -> None:
    """Check that the numbers of the classes are where the logits are."""
    if vector.device != input.device:
        raise ValueError(
            f"Expected {name} on {input.device}, where input is, got it on {vector.device}. Move it once: the loss "
            f"module by .to({str(input.device)!r}), which takes its {name} along, or the tensor itself."
        )
