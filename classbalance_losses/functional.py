"""Every loss and every piece of it as a function."""

from classbalance_losses.losses.dual_cross_entropy import dual_cross_entropy_loss
from classbalance_losses.losses.dual_focal import dual_focal_loss
from classbalance_losses.losses.dyce import dyce_loss
from classbalance_losses.losses.focal import focal_loss
from classbalance_losses.losses.gbw import class_gradient_norms, gbw_class_weights, gbw_loss
from classbalance_losses.losses.weighted_cross_entropy import weighted_cross_entropy_loss
from classbalance_losses.ops.projection import solve_class_weights

__all__ = [
    "class_gradient_norms",
    "dual_cross_entropy_loss",
    "dual_focal_loss",
    "dyce_loss",
    "focal_loss",
    "gbw_class_weights",
    "gbw_loss",
    "solve_class_weights",
    "weighted_cross_entropy_loss",
]
