"""Losses for dense prediction where classes are badly imbalanced."""

from classbalance_losses import functional
from classbalance_losses._dispatch import use_backend
from classbalance_losses._version import __version__
from classbalance_losses.losses._base import SumLoss
from classbalance_losses.losses.deep_supervision import DeepSupervision
from classbalance_losses.losses.dual_cross_entropy import DualCrossEntropyLoss
from classbalance_losses.losses.dual_focal import DualFocalLoss
from classbalance_losses.losses.dyce import DyCELoss
from classbalance_losses.losses.entropy import EntropyLoss
from classbalance_losses.losses.focal import FocalLoss
from classbalance_losses.losses.gbw import GBWLoss
from classbalance_losses.losses.logit_adjusted import LogitAdjustedLoss
from classbalance_losses.losses.overlap import DiceLoss, JaccardLoss, TverskyLoss
from classbalance_losses.losses.pull import PullLoss
from classbalance_losses.losses.text_queries import (
    AnchorLoss,
    PromptLoss,
    QueryDiversityLoss,
    TopologyLoss,
)
from classbalance_losses.losses.vision_language import (
    MaskedConsistencyLoss,
    TextAlignmentLoss,
    VisionLanguageLoss,
)
from classbalance_losses.losses.weighted_cross_entropy import WeightedCrossEntropyLoss
from classbalance_losses.state import (
    ClassStatistics,
    ClassWeightEstimator,
    Curriculum,
    EffectiveNumber,
    ImageFrequency,
    LossBased,
    MedianFrequency,
    PixelFrequency,
)

__all__ = [
    "AnchorLoss",
    "ClassStatistics",
    "ClassWeightEstimator",
    "Curriculum",
    "DeepSupervision",
    "DiceLoss",
    "DualCrossEntropyLoss",
    "DualFocalLoss",
    "DyCELoss",
    "EffectiveNumber",
    "EntropyLoss",
    "FocalLoss",
    "GBWLoss",
    "ImageFrequency",
    "JaccardLoss",
    "LogitAdjustedLoss",
    "LossBased",
    "MaskedConsistencyLoss",
    "MedianFrequency",
    "PixelFrequency",
    "PromptLoss",
    "PullLoss",
    "QueryDiversityLoss",
    "SumLoss",
    "TextAlignmentLoss",
    "TopologyLoss",
    "TverskyLoss",
    "VisionLanguageLoss",
    "WeightedCrossEntropyLoss",
    "__version__",
    "functional",
    "use_backend",
]
