"""The stateful parts: statistics of the classes, and class weights that follow them, all in buffers."""

from classbalance_losses.state.estimators import (
    ClassWeightEstimator,
    Curriculum,
    EffectiveNumber,
    ImageFrequency,
    LossBased,
    MedianFrequency,
    PixelFrequency,
)
from classbalance_losses.state.lazy import register_lazy_buffer
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
    "register_lazy_buffer",
]
