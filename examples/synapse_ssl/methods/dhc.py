"""DHC: CPS between two networks that weigh the classes in different ways.

Wang and Li, "Dual-debiased Heterogeneous Co-training Framework for Class-Imbalanced Semi-supervised Medical Image
Segmentation", MICCAI 2023:

    supervised    CE + Dice of the first, both weighted by DiffDW, + CE + Dice of the second, both by DistDW
    unsupervised  CE(first, labels of the second) weighted by DiffDW + CE(second, labels of the first) by DistDW

DiffDW looks at the first network's predictions on labelled patches, DistDW at the second one's on unlabelled patches.
Weighted cross-entropy divides by the sum of its voxels' weights; where that sum is 0, as on patches of background alone
under DistDW, the term is 0 (the released code divides 0 by 0).

With DyCE, each weighted cross-entropy of the supervised term is replaced. DyCE gets no class weights: it re-weighs the
classes itself, and both factors together would be a third rule that nobody published. Dice and the unsupervised term
keep their weights. One consequence: the second network's DyCE sees the background, which DistDW gives weight 0.
"""

from __future__ import annotations

from torch import Tensor

from classbalance_losses.functional import weighted_cross_entropy_loss
from examples.synapse_ssl.class_weights import DiffDW, DistDW
from examples.synapse_ssl.config import Config
from examples.synapse_ssl.data.batches import Patches
from examples.synapse_ssl.methods.base import Terms, halves, label_of
from examples.synapse_ssl.methods.pair import Pair


class Dhc(Pair):
    """Two networks, one weighted by difficulty and one by distribution."""

    def __init__(self, config: Config, class_counts: Tensor) -> None:
        super().__init__(config, class_counts)
        self.difficulty = DiffDW(self.num_classes, config.dhc.window)
        self.distribution = DistDW(class_counts, config.dhc.momentum)

    def compare(self, first: Tensor, second: Tensor, labelled: Patches) -> Terms:
        """See above; the weights move before their use."""
        label, labels = label_of(labelled), (first.argmax(1), second.argmax(1))
        known = [halves(logits, labelled)[0] for logits in (first, second)]
        hard = self.difficulty(halves(labels[0], labelled)[0], label)
        rare = self.distribution(halves(labels[1], labelled)[1])
        return Terms(
            self.supervised(known[0], label, hard) + self.supervised(known[1], label, rare),
            weighted_cross_entropy_loss(first, labels[1], hard)
            + weighted_cross_entropy_loss(second, labels[0], rare),
            {"highest_difficulty": hard.argmax(), "mean_rarity": rare.mean()},
        )
