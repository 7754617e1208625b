"""What adapters ask of a loss, and how they bring a framework's maps to its labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from classbalance_losses._validate import check_tensor
from classbalance_losses.losses._base import PixelLoss, SumLoss
from classbalance_losses.losses.deep_supervision import DeepSupervision


def terms_of(loss: object) -> list[PixelLoss]:
    """Return the losses that a loss is the sum of, or it alone: those of a sum agree on all options but ``reduction``.

    Raises:
        TypeError: it is neither a loss of this package on logits and labels nor a sum of them.
    """
    if isinstance(loss, SumLoss):
        return list(loss.losses)  # type: ignore[arg-type]
    if isinstance(loss, PixelLoss):
        return [loss]
    raise TypeError(
        f"Expected a loss of classbalance_losses on logits and labels, or a sum of such, got {loss!r}.{_remedy(loss)}"
    )


def _remedy(loss: object) -> str:
    if isinstance(loss, DeepSupervision):
        return " In place of DeepSupervision(loss, weights) pass loss itself, and head_weights=weights."
    return f" Pass an instance: {loss.__name__}()." if isinstance(loss, type) else ""


def ignored_label(loss: PixelLoss | SumLoss) -> int:
    """Return a label that the loss leaves out."""
    ignored = terms_of(loss)[0].ignore_index
    return ignored if isinstance(ignored, int) else ignored[0]


def fitted(name: str, values: Tensor, labels: Tensor) -> Tensor:
    """Return a map (B, 1, *), (1, 1, *) or (B, *) in the shape of labels, which may have a channel axis or not.

    Raises:
        ValueError: it has another shape.
        TypeError: it is no tensor.
    """
    check_tensor(name, values)
    found = values
    if values.ndim == labels.ndim + 1 and values.shape[1] == 1:
        found = values[:, 0]
    elif values.ndim == labels.ndim - 1:
        found = values.unsqueeze(1)
    pairs = zip(found.shape, labels.shape, strict=False)
    if found.ndim != labels.ndim or any(size not in (1, whole) for size, whole in pairs):
        raise ValueError(
            f"Expected {name} with one number for each pixel of labels of shape {tuple(labels.shape)}, in that shape, "
            f"(B, 1, *) or (B, *), got {tuple(values.shape)}.{_of_images(name, values, labels)}"
        )
    return found.expand_as(labels)


def _of_images(name: str, values: Tensor, labels: Tensor) -> str:
    if values.shape != labels.shape[:1]:
        return ""
    return f" For one of each image pass {name}.reshape({', '.join(['-1', *'1' * (labels.ndim - 1)])})."


def masked(labels: Tensor, mask: Tensor, ignore_index: int) -> Tensor:
    """Return labels that are left out where a mask, see `fitted`, is 0."""
    kept = fitted("mask", mask, labels) != 0
    if labels.is_floating_point():  # shares of classes
        return torch.where(kept, labels, torch.nan)
    return torch.where(kept, labels.long(), ignore_index)


def named_outputs(outputs: Any, names: Iterable[str | int]) -> list[Tensor]:
    """Return some of a model's outputs: entries of a dict, places of a tuple, or attributes.

    Raises:
        TypeError: there is no tensor of one of the names.
    """
    found = []
    for name in names:
        try:
            output = outputs[name] if hasattr(outputs, "__getitem__") else getattr(outputs, str(name))
        except (LookupError, AttributeError, TypeError):
            output = None
        if not isinstance(output, Tensor):
            there = list(outputs) if isinstance(outputs, dict) else type(outputs).__name__
            raise TypeError(
                f"Expected logits in outputs[{name!r}], got {type(output).__name__} among {there}. head_weights names "
                "the outputs that count."
            )
        found.append(output)
    return found
