"""DePL: CPS with debiased pseudo-labels where they are sure.

Wang, Wu, Lian and Yu, "Debiased Learning from Naturally Imbalanced Pseudo-Labels", CVPR 2022, in the form that DHC's
authors put into CPS:

    supervised    as CPS; with DyCE, both cross-entropies are replaced
    unsupervised  CPS with labels from softmax(z - tau log q), its voxels kept where that is at least 0.9 sure

q is an exponential average of a network's mean softmax on unlabelled patches, from 1 / C on. The original has tau 1
and momentum 0.999; the port has 1 and 0.99, which are the defaults here. The sum over the kept voxels is divided by the
number of all of them, as in the port.

The port has a q for each voxel's position in the patch, 14 x 64 x 128 x 128 numbers. Random crops give positions no
meaning, so each averages few samples of the same thing. Here q is one number a class, as in the original. The port
also computes logits shifted by log q (the original's margin) and then trains on the plain ones; so does this.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from examples.synapse_ssl.config import Config
from examples.synapse_ssl.data.batches import Patches
from examples.synapse_ssl.methods.base import Terms, halves
from examples.synapse_ssl.methods.pair import Pair


class Depl(Pair):
    """Two networks, and what each believes the classes' frequencies to be."""

    frequency: Tensor

    def __init__(self, config: Config, class_counts: Tensor) -> None:
        super().__init__(config, class_counts)
        self.register_buffer("frequency", torch.full((2, self.num_classes), 1 / self.num_classes))  # q

    def compare(self, first: Tensor, second: Tensor, labelled: Patches) -> Terms:
        """See above; q moves after its use."""
        supervised = self.supervise(first, labelled) + self.supervise(second, labelled)
        believed = [
            self._believed(logits, q) for logits, q in zip((first, second), self.frequency, strict=True)
        ]
        unsupervised = _agreement(first, *believed[1]) + _agreement(second, *believed[0])
        self._count([halves(logits, labelled)[1] for logits in (first, second)])
        sure = torch.stack([kept for _, kept in believed]).float().mean()
        return Terms(supervised, unsupervised, {"sure": sure})

    @torch.no_grad()
    def _believed(self, logits: Tensor, frequency: Tensor) -> tuple[Tensor, Tensor]:
        """Pseudo-labels (N, *), and where they are sure."""
        rule = self.config.depl
        shift = rule.tau * frequency.log().view(1, -1, *[1] * (logits.ndim - 2))
        confidence, label = (logits - shift).softmax(1).max(1)
        return label, confidence >= rule.threshold

    @torch.no_grad()
    def _count(self, unlabelled: list[Tensor]) -> None:
        momentum = self.config.depl.momentum
        seen = torch.stack([logits.softmax(1).transpose(0, 1).flatten(1).mean(1) for logits in unlabelled])
        self.frequency = momentum * self.frequency + (1 - momentum) * seen


def _agreement(logits: Tensor, label: Tensor, sure: Tensor) -> Tensor:
    return torch.where(sure, cross_entropy(logits, label, reduction="none"), 0).mean()
