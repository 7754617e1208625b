"""The loss of the three heads; class weights are the semantic one's alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.uda_gbw.config import WeightingConfig
from examples.uda_gbw.data import Classes
from examples.uda_gbw.panoptic.config import InstanceConfig
from examples.uda_gbw.panoptic.data import Batch, uncounted
from examples.uda_gbw.panoptic.networks import Outputs
from examples.uda_gbw.panoptic.targets import targets_of
from examples.uda_gbw.weighting import ClassWeightedLoss


class PanopticLoss(nn.Module):
    r"""Cross-entropy with class weights, squared error of the heat map, absolute error of the offsets.

    .. math:: L = L_{semantic} + w_{centre} L_{centre} + w_{offset} L_{offset}

    The heat map's error is the mean over pixels that say something of instances, the offsets' over the pixels of
    instances and both directions.

    Args:
        weighting: the class weights of the semantic loss.
        classes: of the training set.
        instance: the weights of the other two.
    """

    def __init__(self, weighting: WeightingConfig, classes: Classes, instance: InstanceConfig) -> None:
        super().__init__()
        self.semantic, self.rule = ClassWeightedLoss(weighting, classes), instance

    def forward(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """The loss and its parts, unweighted: `loss`, `semantic`, `centre` and `offset`."""
        targets = targets_of(batch.instance, self.rule.sigma)
        semantic = self.semantic(outputs.logits, batch.label)
        error = (outputs.heat - targets.heat).square()
        centre = _mean(error, ~uncounted(batch.label, batch.instance))
        away = (outputs.offset - targets.offset).abs().mean(1)
        offset = _mean(away, batch.instance > 0)
        total = semantic + self.rule.centre_weight * centre + self.rule.offset_weight * offset
        return {"loss": total, "semantic": semantic, "centre": centre, "offset": offset}


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean of the chosen values, 0 of none."""
    return torch.where(chosen, values, 0).sum() / chosen.sum().clamp(min=1)
