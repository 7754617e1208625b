"""Checks for the losses that take features; same manners as ``_validate``."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor

from classbalance_losses import _validate_label_remedies as label_remedies
from classbalance_losses import _validate_remedies as remedies
from classbalance_losses._validate import FLOATS, INDICES, check_device, check_target_range, check_tensor
from classbalance_losses._validate_options import as_label, check_choice, check_range
from classbalance_losses.kernels.plain import can_read_values


def check_floats(name: str, value: Tensor) -> None:
    """Check that a tensor is of a floating-point dtype."""
    check_tensor(name, value)
    if value.dtype not in FLOATS:
        remedy = f"{name}.real or {name}.abs(), whichever it is" if value.is_complex() else f"{name}.float()"
        raise TypeError(f"Expected {name} of a floating-point dtype, got {value.dtype}. Pass {remedy}.")


def check_labels(name: str, labels: Tensor, num_classes: int | None = None) -> None:
    """Check that a tensor holds class indices, by its dtype."""
    check_tensor(name, labels)
    if labels.dtype not in INDICES:
        raise TypeError(
            f"Expected {name} of class indices (uint8, int16, int32 or int64), got dtype {labels.dtype}. "
            f"{label_remedies.of_label_dtype(name, labels, num_classes, -100)}"
        )


def check_label_range(name: str, labels: Tensor, num_classes: int, ignore_index: int) -> None:
    """Check that every label is a class or ``ignore_index`` (values are read on the CPU alone)."""
    check_target_range(labels, num_classes, as_label(ignore_index), name)


def check_integer(name: str, value: int) -> None:
    """Check that a number is an integer, numpy's too."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"Expected {name} to be an int, got {type(value).__name__}. Pass int({name}).")


def check_num_classes(num_classes: int, least: int = 2) -> None:
    """Check that there are at least two classes to tell apart."""
    check_integer("num_classes", num_classes)
    if num_classes < least:
        raise ValueError(f"Expected num_classes of at least {least}, got {num_classes}.")


def check_feature_map(name: str, features: Tensor, labels_name: str, labels: Tensor) -> None:
    """Check a feature map (N, D, *) against its labels (N, *).

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if the shapes differ; the message tells how to bring labels to the features' size.
    """
    check_floats(name, features)
    check_tensor(labels_name, labels, features.ndim - 1)
    check_labels(labels_name, labels)
    check_device(labels_name, labels, name, features)
    if features.ndim < 2:
        raise ValueError(f"Expected {name} of shape (N, D, *), got {tuple(features.shape)}.")
    size = tuple(features.shape[2:])
    expected = (features.shape[0], *size)
    if tuple(labels.shape) == expected:
        return
    remedy = label_remedies.of_label_shape(labels_name, labels, expected, None, -100)
    if not remedy and labels.ndim == len(expected) and labels.shape[0] == expected[0]:
        remedy = (
            "Labels are often finer than features; bring them to the features' size by nearest neighbour, "
            f"which never mixes two classes: torch.nn.functional.interpolate({labels_name}[:, None].float(), "
            f"size={size}, mode='nearest')[:, 0].long()."
        )
    remedy = remedy or f"The batch axis of {name} is axis 0, the feature axis is axis 1."
    raise ValueError(
        f"Expected {labels_name} of shape {expected} for {name} of shape {tuple(features.shape)}, "
        f"got {tuple(labels.shape)}. {remedy}"
    )


def check_same_device(student: Tensor, source: Tensor, target: Tensor) -> None:
    """Check that three feature maps lie on one device."""
    check_floats("student_features", student)
    for name, features in (("source_features", source), ("target_features", target)):
        check_floats(name, features)
        check_device(name, features, "student_features", student)


def check_same_width(student: Tensor, source: Tensor, target: Tensor) -> None:
    """Check that three feature maps (N, D, *) can be compared."""
    widths = [features.shape[1] if features.ndim > 1 else 0 for features in (student, source, target)]
    if len(set(widths)) > 1:
        raise ValueError(
            "Expected student, source and target features with the same number of channels on axis 1, got "
            f"{widths[0]}, {widths[1]} and {widths[2]}. Take all three from one projector (and its EMA)."
        )


def check_mask(name: str, mask: Tensor | None, shape: tuple[int, ...]) -> None:
    """Check an optional boolean mask."""
    if mask is None:
        return
    check_tensor(name, mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"Expected {name} of dtype torch.bool, got {mask.dtype}. Pass {name}.bool().")
    if tuple(mask.shape) != shape:
        raise ValueError(
            f"Expected {name} of shape {shape}, got {tuple(mask.shape)}. {remedies.of_map_shape(name, mask, shape)}"
        )


def check_confidence(name: str, confidence: Tensor, *, of_classes: bool = False) -> None:
    """Check that a tensor holds probabilities, within rounding (values are read on the CPU alone)."""
    check_floats(name, confidence)
    if not confidence.numel() or not can_read_values(confidence):
        return
    low, high = (float(bound) for bound in confidence.detach().aminmax())
    if not (low >= 0 and high <= 1 + 1e-2):
        remedy = f"{name}.softmax(1)" if of_classes else "the largest probability, logits.softmax(1).amax(1)"
        raise ValueError(
            f"Expected {name} in [0, 1], got values from {low:.4g} to {high:.4g}. Did you pass logits? Pass {remedy}."
        )


def check_shape(name: str, value: Tensor, expected: tuple[int, ...], words: str) -> None:
    """Check a shape that other arguments settle; ``words`` writes it in letters, as "(C, D)"."""
    if tuple(value.shape) != expected:
        raise ValueError(
            f"Expected {name} of shape {words} = {expected}, to fit the other arguments, got {tuple(value.shape)}."
        )


def check_count(name: str, value: int) -> None:
    """Check that a number of samples is a positive int."""
    check_integer(name, value)
    check_range(name, value, 1)


def check_even(name: str, value: int) -> None:
    """Check that a number of samples splits into two equal halves, one a domain."""
    check_count(name, value)
    if value % 2:
        raise ValueError(f"Expected an even {name}, one half for each domain, got {value}.")


def check_probability_map(name: str, probabilities: Tensor, features: Tensor, num_classes: int) -> None:
    """Check a map of probabilities (N, C, *) against the feature map (N, D, *) that it belongs to."""
    check_confidence(name, probabilities, of_classes=True)
    check_device(name, probabilities, "target_features", features)
    size = tuple(features.shape[2:])
    expected = (features.shape[0], num_classes, *size)
    if tuple(probabilities.shape) == expected:
        return
    remedy = f"Axis 1 must have one channel for each of the {num_classes} classes."
    if tuple(probabilities.shape[:2]) == expected[:2]:
        remedy = f"Bring it to the features' size: torch.nn.functional.interpolate({name}, size={size})."
    raise ValueError(
        f"Expected {name} of shape {expected} for features of shape {tuple(features.shape)}, "
        f"got {tuple(probabilities.shape)}. {remedy}"
    )


def check_pull_options(objective: str, temperature: float, pair_reduction: str) -> None:
    """Check the options that the pull loss has as a function and as a module."""
    check_choice("objective", objective, ("infonce", "mse"))
    check_range("temperature", temperature, 0, open_low=True)
    check_choice("pair_reduction", pair_reduction, ("mean", "sum"))


def check_pull_vectors(
    queries: Tensor, query_labels: Tensor, prototypes: Tensor, class_weight: Tensor, ignore_index: int
) -> None:
    """Check queries (Q, D) and their labels (Q,) against prototypes (C, D) and weights (C,)."""
    for name, value in (("queries", queries), ("prototypes", prototypes), ("class_weight", class_weight)):
        check_floats(name, value)
        check_device(name, value, "queries", queries)
    check_labels("query_labels", query_labels)
    check_device("query_labels", query_labels, "queries", queries)
    if queries.ndim != 2:
        raise ValueError(
            f"Expected queries of shape (Q, D), got {tuple(queries.shape)}. From a map (N, D, *): "
            "features.movedim(1, -1).flatten(0, -2)."
        )
    if prototypes.ndim != 2 or prototypes.shape[0] < 2:
        raise ValueError(
            f"Expected prototypes of shape (C, D) for at least 2 classes, got {tuple(prototypes.shape)}."
        )
    num_classes = prototypes.shape[0]
    check_shape("query_labels", query_labels, (queries.shape[0],), "(Q,)")
    check_shape("prototypes", prototypes, (num_classes, queries.shape[1]), "(C, D)")
    check_shape("class_weight", class_weight, (num_classes,), "(C,)")
    check_label_range("query_labels", query_labels, num_classes, ignore_index)


def check_negatives(
    queries: Tensor, prototypes: Tensor, negatives: Tensor | None, negative_mask: Tensor | None
) -> Tensor:
    """Check negatives, (C, M, D) or (Q, M, D), and their mask; return the negatives."""
    if negatives is None:
        raise ValueError("objective='infonce' needs negatives, (C, M, D) or (Q, M, D). Did you mean 'mse'?")
    check_floats("negatives", negatives)
    check_device("negatives", negatives, "queries", queries)
    sizes = (prototypes.shape[0], queries.shape[0])
    if negatives.ndim != 3 or negatives.shape[0] not in sizes or negatives.shape[2] != queries.shape[1]:
        raise ValueError(
            f"Expected negatives of shape (C, M, D) = ({sizes[0]}, M, {queries.shape[1]}), shared by the queries "
            f"of a class, or (Q, M, D) = ({sizes[1]}, M, {queries.shape[1]}), got {tuple(negatives.shape)}."
        )
    check_mask("negative_mask", negative_mask, tuple(negatives.shape[:2]))
    return negatives


def check_last_layer_features(features: Tensor | None, input: Tensor, gradient: str) -> None:
    """Check that features are given exactly where they are used, at the logits' size."""
    if gradient != "last_layer_weight":
        if features is not None:
            raise ValueError(
                f"features= is used by gradient='last_layer_weight' only, got gradient={gradient!r}."
            )
        return
    if features is None:
        raise ValueError(
            "gradient='last_layer_weight' needs features=, what enters the last layer, (N, D, *)."
        )
    check_floats("features", features)
    check_device("features", features, "input", input)
    if features.ndim != input.ndim or (features.shape[0], *features.shape[2:]) != (
        input.shape[0],
        *input.shape[2:],
    ):
        raise ValueError(
            f"Expected features of shape (N, D, *) with the batch and spatial size of input {tuple(input.shape)}, "
            f"got {tuple(features.shape)}. Where logits are resized after the last layer, resize the features too."
        )
