"""Checks of a call by its task: one class a pixel, one label, or many; indices, or shares of soft labels."""

from __future__ import annotations

import torch
from torch import Tensor

from classbalance_losses import _validate_label_remedies as label_remedies
from classbalance_losses import _validate_remedies as remedies
from classbalance_losses._dispatch import look_at_shares
from classbalance_losses._options import Common
from classbalance_losses._validate import (
    FLOATS,
    check_device,
    check_input_target,
    check_pixel_weight,
    check_tensor,
    check_upsampled,
)
from classbalance_losses._validate_options import as_labels, check_choice, check_common, check_upsample
from classbalance_losses.kernels.plain import can_read_values

TASKS = ("multiclass", "binary", "multilabel")


def check_call(input: Tensor, target: Tensor, pixel_weight: Tensor | None, options: Common) -> Tensor | None:
    """Check what every loss on logits is called with; ``options`` are complete.

    Returns:
        The sum of each pixel's shares, if the target has shares and they were looked at.

    Raises:
        ValueError: for shapes, devices or options that do not fit.
        TypeError: for what is no tensor, or of another dtype.
    """
    check_common(options["ignore_index"], options["reduction"], options["process_group"])
    check_upsample(options["upsample"], options["align_corners"])
    check_choice("task", options["task"], TASKS)
    ignored = as_labels(options["ignore_index"])
    label = ignored if isinstance(ignored, int) else ignored[0]
    upsample, is_single, total = options["upsample"], options["task"] != "multiclass", None
    if is_single:
        _check_labels_of_own(input, target, options["task"], upsample, label)
    elif not _is_soft(input, target, upsample):
        is_pixel = (
            isinstance(input, Tensor) and isinstance(target, Tensor) and (input.ndim, target.ndim) == (1, 0)
        )
        if is_pixel:
            check_input_target(input.unsqueeze(0), target.unsqueeze(0), label, upsample)
        else:
            check_input_target(input, target, label, upsample)
    else:
        total = _check_soft(input, target)
    weighted = target
    if target.is_floating_point() and not is_single:  # one weight for all shares of a pixel
        weighted = target[0] if target.ndim == 1 else target[:, 0]
    check_pixel_weight(pixel_weight, weighted)
    return total


def _is_soft(input: object, target: object, upsample: str | None) -> bool:
    """Whether the target gives shares of the classes, (N, C, *), or (C,) of one pixel."""
    if not (isinstance(input, Tensor) and isinstance(target, Tensor)):
        return False
    floats = input.dtype in FLOATS and target.dtype in FLOATS
    if not floats or input.ndim != target.ndim or not input.ndim:
        return False
    if upsample is not None and input.ndim > 2:
        return input.shape[:2] == target.shape[:2]
    return input.shape == target.shape


def _check_soft(input: Tensor, target: Tensor) -> Tensor | None:
    classes = input.shape[min(input.ndim - 1, 1)]
    if classes < 2:
        raise ValueError(
            f"Expected logits of at least 2 classes on axis 1, got input of shape {tuple(input.shape)}. "
            f"{remedies.of_one_class(classes)}"
        )
    check_device("target", target, "input", input)
    if not (can_read_values(target) and target.numel()):
        return None
    seen = target.detach()
    found = look_at_shares(seen)
    if found is None:
        _check_range(target)
        total = seen.sum(min(target.ndim - 1, 1))
    else:
        low, high, total = found
        if low < 0 or high > 1:
            _check_range(target)
    if bool((total > 1.5).any()) and bool(((seen == 0) | (seen == 1)).all()):
        raise ValueError(
            f"Expected shares of the classes, got {tuple(target.shape)} of 0 and 1 with several 1 a pixel. "
            f"{label_remedies.of_shares(target)}"
        )
    return total


def _check_range(target: Tensor, ignore_index: int | None = None) -> None:
    """Check that shares lie in [0, 1] or are NaN: read on the CPU alone. With ``ignore_index`` they are of labels."""
    if not (can_read_values(target) and target.numel()):
        return
    low, high = map(float, torch.aminmax(target.detach()))
    if low >= 0 and high <= 1:
        if ignore_index is not None:
            _check_scale(target, high)
        return
    low, high = map(float, torch.aminmax(target.detach().nan_to_num(0.0)))
    if low < 0 or high > 1:
        raise ValueError(
            f"Expected a target of probabilities in [0, 1], got values from {low:.4g} to {high:.4g}. "
            f"{label_remedies.of_shares(target, ignore_index)}"
        )


def _check_scale(target: Tensor, high: float) -> None:
    """Check that labels of 0 and 1 have not become 0 and 1/255."""
    if abs(255 * high - 1) < 1e-2 and bool(((target == 0) | (target == target.max())).all()):
        raise ValueError(
            "Expected a target of probabilities, got 0 and 1/255 alone, as ToTensor makes them of 0 and 1. Pass "
            "(target * 255).round()."
        )


def _check_labels_of_own(
    input: Tensor, target: Tensor, task: str, upsample: str | None, ignore_index: int
) -> None:
    """Check logits of labels that are absent or present, one (binary) or many, each by itself."""
    check_tensor("input", input)
    check_tensor("target", target, input.ndim)
    if input.dtype not in FLOATS and target.dtype in FLOATS and _fits(target, input, task, None):
        raise TypeError(
            f"Expected floating-point logits, got input of dtype {input.dtype} and target of dtype {target.dtype}. "
            "The arguments look swapped, logits come first: input, target = target, input."
        )
    if input.dtype not in FLOATS:
        raise TypeError(
            f"Expected floating-point logits, got input of dtype {input.dtype}. {remedies.of_logits(input)}"
        )
    if target.is_complex():
        raise TypeError(f"Expected target of 0 and 1, got dtype {target.dtype}. Pass target.real.")
    check_device("target", target, "input", input)
    if input.ndim < 2 or (task == "binary" and input.shape[1] != 1) or not input.shape[1]:
        shape = "(N, 1, *)" if task == "binary" else "(N, L, *)"
        raise ValueError(
            f'Expected input of shape {shape} with task="{task}", got {tuple(input.shape)}. '
            f"{label_remedies.of_own_logits(input, target)}"
        )
    if not _fits(input, target, task, upsample):
        channel = "" if task == "multilabel" else f" or {(input.shape[0], *input.shape[2:])}"
        raise ValueError(
            f'Expected target of shape {tuple(input.shape)}{channel} with task="{task}"'
            f"{', of any size *' if upsample else ''}, got {tuple(target.shape)}. "
            f"{label_remedies.of_own_target(input, target, task)}"
        )
    if target.is_floating_point():
        _check_range(target, ignore_index)


def _fits(input: Tensor, target: Tensor, task: str, upsample: str | None) -> bool:
    shapes = [input.shape] if task == "multilabel" else [input.shape, (input.shape[0], *input.shape[2:])]
    for shape in shapes:
        axes = len(shape) - (input.ndim - 2)
        if upsample is None:
            if target.shape == torch.Size(shape):
                return True
        elif target.ndim == len(shape) and target.shape[:axes] == torch.Size(shape[:axes]):
            check_upsampled(input, target, target.shape[axes:])
            return True
    return False
