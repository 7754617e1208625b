"""Every loss, and every piece of one that stands on its own, as a function."""

from classbalance_losses.losses.dual_cross_entropy import dual_cross_entropy_loss
from classbalance_losses.losses.dual_focal import dual_focal_loss
from classbalance_losses.losses.dyce import dyce_loss
from classbalance_losses.losses.entropy import entropy_gradient_norms, entropy_loss
from classbalance_losses.losses.focal import focal_loss
from classbalance_losses.losses.gbw import class_gradient_norms, gbw_class_weights, gbw_loss
from classbalance_losses.losses.logit_adjusted import adjust_logits, logit_adjusted_loss
from classbalance_losses.losses.overlap import dice_loss, jaccard_loss, tversky_loss
from classbalance_losses.losses.pull import pull_loss
from classbalance_losses.losses.text_queries import (
    anchor_loss,
    prompt_loss,
    query_diversity_loss,
    topology_loss,
)
from classbalance_losses.losses.vision_language import (
    masked_consistency_loss,
    text_alignment_loss,
    vision_language_loss,
)
from classbalance_losses.losses.weighted_cross_entropy import weighted_cross_entropy_loss
from classbalance_losses.ops.class_weights import (
    curriculum_weights,
    effective_number_weights,
    enet_weights,
    image_frequency_weights,
    imagewise_frequency_weights,
    loss_based_weights,
    median_frequency_weights,
    pixel_frequency_weights,
)
from classbalance_losses.ops.projection import solve_class_weights
from classbalance_losses.ops.prototypes import class_confidence_weights, class_prototypes
from classbalance_losses.ops.sampling import (
    sample_class_balanced,
    sample_domain_equal_negatives,
    unreliable_pixels,
)

__all__ = [
    "adjust_logits",
    "anchor_loss",
    "class_confidence_weights",
    "class_gradient_norms",
    "class_prototypes",
    "curriculum_weights",
    "dice_loss",
    "dual_cross_entropy_loss",
    "dual_focal_loss",
    "dyce_loss",
    "effective_number_weights",
    "enet_weights",
    "entropy_gradient_norms",
    "entropy_loss",
    "focal_loss",
    "gbw_class_weights",
    "gbw_loss",
    "image_frequency_weights",
    "imagewise_frequency_weights",
    "jaccard_loss",
    "logit_adjusted_loss",
    "loss_based_weights",
    "masked_consistency_loss",
    "median_frequency_weights",
    "pixel_frequency_weights",
    "prompt_loss",
    "pull_loss",
    "query_diversity_loss",
    "sample_class_balanced",
    "sample_domain_equal_negatives",
    "solve_class_weights",
    "text_alignment_loss",
    "topology_loss",
    "tversky_loss",
    "unreliable_pixels",
    "vision_language_loss",
    "weighted_cross_entropy_loss",
]
