"""URPC: one network's outputs at four scales should agree, where they are sure.

Luo et al., "Efficient Semi-supervised Gross Target Volume of Nasopharyngeal Carcinoma Segmentation via Uncertainty
Rectified Pyramid Consistency", MICCAI 2021:

    supervised    mean over the outputs s of 0.5 * (CE + Dice); with DyCE, its cross-entropies are all replaced,
                  and each output has a set of hardest voxels of its own
    unsupervised  mean over s of  E[exp(-v_s) (mean p - p_s)^2] / E[exp(-v_s)] + E[v_s],  v_s = KL(mean p || p_s)

E[...] are means over voxels (and, in the first, classes). As in the released code, gradients pass through the mean.

The published network is a 3-D U-Net with batch norm and dropout, and trilinear enlargements of four decoder stages.
Here it is MONAI's DynUNet with deep supervision: instance norm, nearest-neighbour enlargements.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from examples.synapse_ssl.config import Config
from examples.synapse_ssl.data.batches import Patches
from examples.synapse_ssl.methods.base import Method, Terms, halves, joined, label_of

_OUTPUTS = 4


class Urpc(Method):
    """One network with four outputs in training; the finest is scored."""

    def __init__(self, config: Config, class_counts: Tensor) -> None:
        super().__init__(config, class_counts)
        self.student = self.network(heads=_OUTPUTS)

    def terms(self, batch: Mapping[str, Patches], step: int) -> Terms:
        """All outputs on labelled and unlabelled patches together."""
        known, new = halves(self.logits(self.student, joined(batch)), batch["labelled"])
        label = label_of(batch["labelled"])
        values = [self.supervised(known[:, scale], label) for scale in range(_OUTPUTS)]
        return Terms(torch.stack(values).mean(), rectified_consistency(new), {})

    def predict(self, images: Tensor) -> Tensor:
        """The finest output's logits."""
        return self.logits(self.student, images)


def rectified_consistency(outputs: Tensor) -> Tensor:
    """The unsupervised term of logits (N, scales, C, *): 0 where all scales agree."""
    log_probability = outputs.log_softmax(2)
    probability = log_probability.exp()
    mean = probability.mean(1, keepdim=True)
    logarithm = mean.clamp(min=torch.finfo(mean.dtype).tiny).log()
    variance = (mean * (logarithm - log_probability)).sum(2)  # (N, scales, *)
    certain = (-variance).exp()
    distance = ((mean - probability) ** 2).mean(2)
    over = [0, *range(2, variance.ndim)]  # all but the scales
    rectified = (distance * certain).mean(over) / (certain.mean(over) + 1e-8)
    return (rectified + variance.mean(over)).mean()
