"""The stateful parts: statistics of the classes, and class weights that follow them."""

from classbalance_losses.ops.batch_sums import BatchSums
from classbalance_losses.state.estimators import (
    ClassWeightEstimator,
    Curriculum,
    EffectiveNumber,
    ImageFrequency,
    LossBased,
    MedianFrequency,
    PixelFrequency,
)
from classbalance_losses.state.statistics import ClassStatistics

__all__ = [
    "BatchSums",
    "ClassStatistics",
    "ClassWeightEstimator",
    "Curriculum",
    "EffectiveNumber",
    "ImageFrequency",
    "LossBased",
    "MedianFrequency",
    "PixelFrequency",
]
