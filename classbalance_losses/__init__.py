"""Losses for dense prediction where classes are badly imbalanced."""

from classbalance_losses import functional
from classbalance_losses._version import __version__
from classbalance_losses.losses.dual_cross_entropy import DualCrossEntropyLoss
from classbalance_losses.losses.dual_focal import DualFocalLoss
from classbalance_losses.losses.dyce import DyCELoss
from classbalance_losses.losses.focal import FocalLoss
from classbalance_losses.losses.gbw import GBWLoss
from classbalance_losses.losses.weighted_cross_entropy import WeightedCrossEntropyLoss

__all__ = [
    "DualCrossEntropyLoss",
    "DualFocalLoss",
    "DyCELoss",
    "FocalLoss",
    "GBWLoss",
    "WeightedCrossEntropyLoss",
    "__version__",
    "functional",
]
