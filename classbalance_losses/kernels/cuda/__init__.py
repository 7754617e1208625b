"""The backend "cuda": Triton's kernels. Importing it imports triton."""

from __future__ import annotations

from torch import Tensor

from classbalance_losses.kernels.call import Labels, Logits
from classbalance_losses.kernels.cuda.classes import class_sums, weighted_sums
from classbalance_losses.kernels.cuda.common import reasons
from classbalance_losses.kernels.cuda.mined import mined_sums
from classbalance_losses.kernels.cuda.overlap import loss_and_form, values_and_overlap
from classbalance_losses.kernels.cuda.pixel import pixel_pass
from classbalance_losses.kernels.cuda.probe import failure
from classbalance_losses.kernels.cuda.project import project
from classbalance_losses.kernels.cuda.select import kth_largest
from classbalance_losses.kernels.cuda.tversky import mean_missed
from classbalance_losses.kernels.cuda.upsample import upsampled_pass
from classbalance_losses.kernels.cuda.weighted import weighted_pass
from classbalance_losses.kernels.forms.cuda import OF_LOSS, parameters
from classbalance_losses.kernels.forms.reference import CrossEntropy, Form
from classbalance_losses.kernels.reference import error_sums, soft_cross_entropy, soft_sums

__all__ = [
    "class_sums",
    "cross_entropy_and_error",
    "error_sums",
    "failure",
    "kth_largest",
    "loss_and_form",
    "mean_missed",
    "mined_sums",
    "pixel_values",
    "project",
    "reasons",
    "soft_cross_entropy",
    "soft_sums",
    "values_and_overlap",
    "weighted_pass",
    "weighted_sums",
]


def pixel_values(logits: Logits, labels: Labels, form: Form) -> Tensor:
    """Return φ of each pixel (N, *) in float32, 0 where its label is ignored, with the gradient of the logits."""
    kind, numbers, weight = parameters(form)
    if logits.resize is None or kind not in OF_LOSS:
        return pixel_pass(logits, labels, kind, numbers, weight)[0]
    return upsampled_pass(logits, logits.resize, labels, kind, numbers)[0]


def cross_entropy_and_error(logits: Logits, labels: Labels) -> tuple[Tensor, Tensor]:
    r"""Return the cross-entropy, and the constant :math:`\lVert p_i - e_{y_i} \rVert^2` (N, *)."""
    kind, numbers, weight = parameters(CrossEntropy())
    if logits.resize is None:
        loss, error = pixel_pass(logits, labels, kind, numbers, weight, with_error=True)
    else:
        loss, error = upsampled_pass(logits, logits.resize, labels, kind, numbers, with_error=True)
    return loss, error
