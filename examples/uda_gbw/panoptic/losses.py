"""The losses of centres and offsets. They have no classes, and so no class weights."""

from __future__ import annotations

import torch
from torch import Tensor

from examples.uda_gbw.panoptic.config import InstanceConfig
from examples.uda_gbw.panoptic.labels import decoded, uncounted
from examples.uda_gbw.panoptic.targets import targets_of


def instance_losses(
    heat: Tensor, offset: Tensor, code: Tensor, things: tuple[int, ...], rule: InstanceConfig
) -> dict[str, Tensor]:
    """The squared error of the heat map and the absolute error of the offsets, weighted: `centre` and `offset`.

    The heat map's error is the mean over pixels that say something of instances, the offsets' over the pixels of
    instances and both directions.

    Args:
        heat: (N, H, W).
        offset: (N, 2, H, W).
        code: labels as `labels.coded` has them, (N, H, W).
        things: the thing classes.
        rule: the weights, and the Gaussian of a centre.
    """
    label, instance = decoded(code)
    targets = targets_of(instance, rule.sigma)
    centre = _mean((heat - targets.heat).square(), ~uncounted(label, instance, things))
    away = _mean((offset - targets.offset).abs().mean(1), instance > 0)
    return {"centre": rule.centre_weight * centre, "offset": rule.offset_weight * away}


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean of the chosen values, 0 of none."""
    return torch.where(chosen, values, 0).sum() / chosen.sum().clamp(min=1)
