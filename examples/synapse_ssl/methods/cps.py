"""CPS: each network learns the other one's labels.

Chen, Yuan, Zeng and Wang, "Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision", CVPR 2021:

    supervised    (CE + Dice) of the first + (CE + Dice) of the second; with DyCE, both cross-entropies are replaced
    unsupervised  CE(first, labels of the second) + CE(second, labels of the first), on all voxels, labelled ones too

The cross-entropies of the unsupervised term stay what they are with DyCE.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from examples.synapse_ssl.data.batches import Patches
from examples.synapse_ssl.methods.base import Terms
from examples.synapse_ssl.methods.pair import Pair


class Cps(Pair):
    """Two networks that exchange their most probable classes."""

    def compare(self, first: Tensor, second: Tensor, labelled: Patches) -> Terms:
        """See above."""
        supervised = self.supervise(first, labelled) + self.supervise(second, labelled)
        # argmax has no gradient: no network moves its labels.
        unsupervised = cross_entropy(first, second.argmax(1)) + cross_entropy(second, first.argmax(1))
        return Terms(supervised, unsupervised, {})
