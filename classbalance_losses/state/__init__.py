"""The stateful parts: statistics of the classes, and class weights that follow them."""

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
    "ClassStatistics",
    "ClassWeightEstimator",
    "Curriculum",
    "EffectiveNumber",
    "ImageFrequency",
    "LossBased",
    "MedianFrequency",
    "PixelFrequency",
]
