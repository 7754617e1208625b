"""The losses of a grid: the library's by their names, and others as their users take them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

import classbalance_losses
from benchmarks.accuracy.data import BenchmarkData

_SURELY_ABSENT = -100.0  # a logit at which every loss of one logit is 0


def build_loss(spec: dict[str, Any], data: BenchmarkData) -> nn.Module:
    """A loss by its public name, with the task of the data, or one of another package as "package.Name".

    Of the training set's counts are made: `weight = "pixel_frequency"`, or another scheme, whose numbers are
    `weight_kwargs`; `prior = "counts"`; and of torch's `pos_weight = "counts"`. `SumLoss` has `terms`, losses again.
    """
    kwargs: dict[str, Any] = dict(spec.get("kwargs", {}))
    name, counts = spec["name"], data.pixel_counts
    if name == "SumLoss":
        terms: list[Any] = [(1.0, build_loss(term, data)) for term in kwargs["terms"]]
        return classbalance_losses.SumLoss(terms)
    if isinstance(kwargs.get("weight"), str):
        scheme = getattr(classbalance_losses.functional, f"{kwargs['weight']}_weights")
        kwargs["weight"] = scheme(counts, **kwargs.pop("weight_kwargs", {}))
    if kwargs.get("prior") == "counts":
        kwargs["prior"] = counts
    if kwargs.get("pos_weight") == "counts":
        kwargs["pos_weight"] = counts[0] / counts[1]
    if "." in name:
        return _peer(name, kwargs, data)
    owner = nn if name == "CrossEntropyLoss" else classbalance_losses
    if not hasattr(owner, name):
        raise ValueError(f"classbalance_losses has no loss {name!r}")
    if data.task != "multiclass":
        kwargs["task"] = data.task
    loss: nn.Module = getattr(owner, name)(**kwargs, ignore_index=data.ignore_index)
    return loss


class _Peer(nn.Module):
    """A loss that ignores nothing, and the label of pixels to ignore; kornia's take labels without a channel."""

    def __init__(self, loss: nn.Module, ignore_index: int) -> None:
        super().__init__()
        self.loss, self.ignore_index = loss, ignore_index
        self.has_channel = not type(loss).__module__.startswith("kornia")


class OneLogit(_Peer):
    """A loss of one logit that ignores nothing: pixels to be ignored become sure and right, and still count in a mean.

    Args:
        loss: of logits (N, 1, H, W) and a mask of their size, of floats; kornia's takes (N, H, W).
        ignore_index: the label of pixels to ignore.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (N, 1, H, W) and labels (N, H, W)."""
        valid = (target != self.ignore_index).unsqueeze(1)
        mask = torch.where(valid, target.unsqueeze(1), 0).to(input.dtype)
        loss: Tensor = self.loss(
            torch.where(valid, input, _SURELY_ABSENT), mask if self.has_channel else mask[:, 0]
        )
        return loss


class OfValidPixels(_Peer):
    """A loss of many classes that ignores nothing, of each image's pixels that count, and the mean over images.

    Args:
        loss: of logits (1, C, M, 1) and labels (1, 1, M, 1); kornia's takes (1, M, 1).
        ignore_index: the label of pixels to ignore.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (N, C, H, W) and labels (N, H, W), of which each image has some that count."""
        losses = []
        for logits, labels in zip(input, target, strict=True):
            valid = labels != self.ignore_index
            mask = labels[valid].view(1, -1, 1)
            losses.append(
                self.loss(logits[:, valid][None, ..., None], mask[:, None] if self.has_channel else mask)
            )
        return torch.stack(losses).mean()


def _peer(name: str, kwargs: dict[str, Any], data: BenchmarkData) -> nn.Module:
    kind = _of_package(name)
    if data.task == "binary":
        return OneLogit(kind(**kwargs), data.ignore_index)
    if name.startswith("torch."):
        return kind(**kwargs, ignore_index=data.ignore_index)
    return OfValidPixels(kind(**kwargs), data.ignore_index)


def _of_package(name: str) -> Callable[..., nn.Module]:
    package, name = name.split(".")
    modules = {"torch": "torch.nn", "monai": "monai.losses", "kornia": "kornia.losses"}
    loss: Callable[..., nn.Module] = getattr(import_module(modules[package]), name)
    return loss
