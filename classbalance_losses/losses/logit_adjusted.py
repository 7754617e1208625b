r"""Logit adjustment: the classes' priors enter the softmax (Menon et al., "Long-tail learning via logit adjustment").

.. math:: L = \frac{1}{N} \sum_i -\log \frac{\pi_{y_i}^\tau e^{z_{i,y_i}}}{\sum_k \pi_k^\tau e^{z_{ik}}}
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from classbalance_losses._options import Common, shows_options
from classbalance_losses._recompute import recomputable
from classbalance_losses._validate_classes import Numbers, as_class_vector, class_vector_of_call
from classbalance_losses._validate_options import check_range
from classbalance_losses._validate_unlabelled import check_unlabelled
from classbalance_losses.kernels.plain import can_read_values
from classbalance_losses.losses._base import VectorLoss
from classbalance_losses.ops.batch import Batch
from classbalance_losses.ops.soft import batch_for
from classbalance_losses.ops.sums import Needs


@shows_options
@recomputable
def logit_adjusted_loss(
    input: Tensor,
    target: Tensor,
    prior: Numbers,
    *,
    pixel_weight: Tensor | None = None,
    tau: float = 1.0,
    **common: Unpack[Common],
) -> Tensor:
    """Functional form of :class:`classbalance_losses.LogitAdjustedLoss`, which describes the arguments."""
    return _loss(batch_for(input, target, pixel_weight, common), prior, tau)


def _loss(batch: Batch, prior: Numbers, tau: float) -> Tensor:
    check_range("tau", tau, 0)
    bias = _bias(_positive(batch.class_vector("prior", prior)).view(batch.groups, -1), tau)
    return batch.adjusted_mean(bias)


def adjust_logits(input: Tensor, prior: Numbers, tau: float = 1.0) -> Tensor:
    r"""Return logits adjusted for decisions, :math:`z_c - \tau \log \pi_c`, of a model that was trained without.

    The largest of them minimises the mean of the classes' errors (Menon et al. 2021, section 4.1). A model that was
    trained by :class:`classbalance_losses.LogitAdjustedLoss` needs none: its logits are those of balanced classes.

    Args:
        input: logits (N, C, \*).
        prior: π, (C,), counts or shares, above 0.
        tau: τ ≥ 0.

    Returns:
        logits of the input's shape and dtype.

    Raises:
        ValueError: for a prior that is not (C,), or not above 0 everywhere, or logits of another shape.
        TypeError: for logits of another dtype.
    """
    check_range("tau", tau, 0)
    check_unlabelled(input, None, None)
    vector = _positive(class_vector_of_call("prior", prior, input, (input.shape[1],)))
    bias = _bias(vector.to(torch.promote_types(input.dtype, torch.float32)), tau)
    return (input - bias.view(-1, *[1] * (input.ndim - 2))).to(input.dtype)


def _positive(prior: Tensor) -> Tensor:
    """Check that each class has a prior (values are read on the CPU alone)."""
    if can_read_values(prior) and not bool((prior > 0).all()):
        raise ValueError(
            f"Expected a prior above 0 for each class, got {prior.tolist()}. For a class that was not seen pass a "
            f"small one: torch.as_tensor(prior).clamp(min={_least(prior)})."
        )
    return prior


def _least(prior: Tensor) -> float:
    """Return a prior that is small: a pixel among counts, a millionth among shares."""
    return 1 if float(prior.detach().max()) > 1 else 1e-6


def _bias(prior: Tensor, tau: float) -> Tensor:
    """Return τ log π (..., C), of a prior that adds up to 1 over its last axis."""
    return tau * torch.log(prior.detach() / prior.detach().sum(-1, keepdim=True))


class LogitAdjustedLoss(VectorLoss):
    r"""Cross-entropy of logits to which the classes' log-priors are added (Menon et al., ICLR 2021).

    .. math::
        L = \frac{1}{N} \sum_i q_i \Big( -\log \frac{\pi_{y_i}^\tau e^{z_{i,y_i}}}{\sum_k \pi_k^\tau e^{z_{ik}}} \Big)

    A rare class has to be further ahead of a frequent one for the same loss, so the model learns the logits of a world
    in which all classes are alike: decide by the largest, without the prior. τ = 1 is balanced softmax (Ren et al.,
    NeurIPS 2020); τ = 0 is cross-entropy. Unlike weights it stays consistent for the balanced error. To adjust a model
    that was trained without, see :func:`classbalance_losses.functional.adjust_logits`.

    Args:
        prior: π, numbers of the classes' pixels or their shares, above 0: a tensor, array or sequence (C,), such as
            ``ClassStatistics.pixel_counts``; (2,) or (L, 2) for labels, absent and present. The attribute takes the
            same later. It is a constant: no gradient reaches it.
        tau: τ ≥ 0.
        task: "multiclass" for a softmax, "binary" for one logit a pixel, "multilabel" for a sigmoid each.
        upsample: "linear" to interpolate the logits to the target's size; ``None`` where they have it.
        align_corners: of the interpolation, as in ``torch.nn.functional.interpolate``.
        ignore_index: the label of pixels to leave out, or several; their logits may be NaN.
        reduction: "mean" over the valid pixels; "sum"; "none" the terms, in the target's shape.
        process_group: ``None`` to count this process's valid pixels, "world" or a group for all its ranks'.

    Shape:
        - input: logits (N, C, \*), of any floating-point dtype; the loss is float32, or float64 for float64.
        - target: class indices (N, \*) of uint8, int16, int32 or int64, or shares (N, C, \*), floats in [0, 1]; of
          labels 0 and 1, any integer dtype or bool, or shares: (N, L, \*), for one (N, \*) too.
        - pixel_weight: q, (N, \*), of labels in the target's shape, non-negative; may require a gradient.

    Raises:
        ValueError: for shapes or options out of range, or a prior that is not above 0.
        TypeError: for dtypes.
        IndexError: for a target that is no class (on the CPU).
    """

    _shown = ("tau",)
    _vector = "prior"
    prior: Tensor

    @property
    def needs(self) -> Needs:
        """A form of its own."""
        return Needs(form=True)

    @shows_options
    def __init__(self, prior: Numbers, *, tau: float = 1.0, **common: Unpack[Common]) -> None:
        check_range("tau", tau, 0)
        super().__init__(**common)
        self.tau = tau
        setattr(self, self._vector, prior)  # a sequence becomes a tensor

    def _checked(self, value: Any) -> Tensor:
        return _positive(as_class_vector("prior", value, self.task))

    def of(self, batch: Batch) -> Tensor:
        """Return the loss of a batch that was checked."""
        return _loss(batch, self.prior, self.tau)

    def forward(self, input: Tensor, target: Tensor, *, pixel_weight: Tensor | None = None) -> Tensor:
        """Return the loss of logits (N, C, *) against labels (N, *)."""
        return logit_adjusted_loss(
            input, target, self.prior, pixel_weight=pixel_weight, tau=self.tau, **self.common
        )
