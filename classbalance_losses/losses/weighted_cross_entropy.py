r"""Weighted cross-entropy: class weights that are given, or estimated from the batches.

.. math:: L = \frac{1}{Z} \sum_i w_{y_i}\, \ell_i, \qquad Z = \sum_i w_{y_i} \;\text{or}\; N
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from classbalance_losses._distributed import ProcessGroup, all_reduce_sum
from classbalance_losses._recompute import recomputable
from classbalance_losses._validate import (
    Numbers,
    as_class_vector,
    check_call,
    check_choice,
    check_class_device,
    check_class_vector,
    check_range,
    class_vector_of_call,
)
from classbalance_losses.kernels.blocks import accumulation_dtype
from classbalance_losses.kernels.plain import is_constant
from classbalance_losses.losses._base import VectorLoss
from classbalance_losses.ops.counts import class_counts
from classbalance_losses.ops.fused import fused_mean
from classbalance_losses.ops.logits import logits_for
from classbalance_losses.ops.pixel import counted_pixels, pixel_cross_entropy, pixel_function
from classbalance_losses.ops.reduction import global_sum, reduce_loss
from classbalance_losses.ops.weights import kept_weight, per_pixel, scaled

# (loss (N, *), target (N, *), keep (N, *), number of classes, process group) -> weights (C,)
Estimator = Callable[[Tensor, Tensor, Tensor, int, ProcessGroup], Tensor]


@recomputable
def weighted_cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    weight: Numbers | Estimator | None = None,
    *,
    pixel_weight: Tensor | None = None,
    normalize: str = "weights",
    label_smoothing: float = 0.0,
    upsample: str | None = None,
    align_corners: bool = False,
    ignore_index: int = -100,
    reduction: str = "mean",
    process_group: ProcessGroup = None,
) -> Tensor:
    """Functional form of :class:`classbalance_losses.WeightedCrossEntropyLoss`, which describes the arguments."""
    _check(normalize, label_smoothing)
    check_call(
        input,
        target,
        pixel_weight,
        upsample=upsample,
        align_corners=align_corners,
        ignore_index=ignore_index,
        reduction=reduction,
        process_group=process_group,
    )

    target, keep = counted_pixels(target, input.shape[1], ignore_index)
    if label_smoothing > 0:  # half gradients of two terms would each be rounded before they are added
        input = input.to(accumulation_dtype(input.dtype))
    logits = logits_for(input, target, upsample, align_corners)
    loss = pixel_cross_entropy(logits, target, keep)
    class_weight = _class_weight(weight, input, loss, target, keep, process_group)
    class_weight = class_weight.to(loss.dtype)

    if label_smoothing == 0:
        fused = fused_mean(
            loss,
            target,
            keep,
            class_weight,
            pixel_weight,
            by_weight=normalize == "weights",
            reduction=reduction,
            process_group=process_group,
        )
        if fused is not None:
            return fused
    own = per_pixel(class_weight, target, keep, loss.dtype)
    weighted = scaled(loss, own)
    if label_smoothing > 0:
        function = partial(_spread, class_weight=class_weight)
        spread = pixel_function(logits, target, keep, function, parameters=(class_weight,))
        weighted = (1 - label_smoothing) * weighted + label_smoothing * spread

    weighted = scaled(weighted, kept_weight(pixel_weight, keep, loss.dtype))
    if normalize == "pixels":
        normalizer = global_sum(keep, process_group)
    elif is_constant(class_weight):
        normalizer = global_sum(own, process_group)
    else:  # Σ_c w_c n_c, of all ranks' n_c: on each rank the derivative is the joined sum's
        count = all_reduce_sum(class_counts(target, keep, input.shape[1]), process_group)
        normalizer = (class_weight * count).sum()
    return reduce_loss(weighted, reduction=reduction, normalizer=normalizer, process_group=process_group)


def _spread(log_prob: Tensor, target: Tensor, keep: Tensor, *, class_weight: Tensor) -> Tensor:
    """1/C Σ_c w_c (-log p_c), what label smoothing adds; a class of weight 0 adds nothing, p_c = 0 or not."""
    return torch.where(keep, scaled(-log_prob, class_weight.view(-1, *[1] * (log_prob.ndim - 2))).mean(1), 0)


def _class_weight(
    weight: Numbers | Estimator | None,
    input: Tensor,
    loss: Tensor,
    target: Tensor,
    keep: Tensor,
    process_group: ProcessGroup,
) -> Tensor:
    """Return w (C,): ones, the given numbers, which may be learned, or what the estimator makes of this batch."""
    num_classes = input.shape[1]
    if weight is None:
        return torch.ones(num_classes, dtype=loss.dtype, device=loss.device)
    if isinstance(weight, (Tensor, type)) or not callable(weight):
        return class_vector_of_call("weight", weight, input)
    estimated = weight(loss.detach(), target, keep, num_classes, process_group)
    check_class_vector("weight", estimated, num_classes)
    check_class_device("weight", estimated, input)
    return estimated.detach()


class WeightedCrossEntropyLoss(VectorLoss):
    r"""Cross-entropy with class weights, given or estimated from the data.

    .. math::
        L = \frac{1}{Z} \sum_i w_{y_i}\, q_i\, \ell_i, \qquad
        Z = \sum_i w_{y_i} \;\text{("weights")} \quad\text{or}\quad N \;\text{("pixels")}

    With ``normalize="weights"`` this is ``torch.nn.CrossEntropyLoss``, whose mean does not change when all
    weights are scaled; "pixels" divides by the number of valid pixels, as mmsegmentation and GBW's released
    code do, so the scale of the weights matters. Label smoothing ε is torch's:
    :math:`(1-\varepsilon) w_y \ell + \frac{\varepsilon}{C} \sum_c w_c (-\log p_c)`, infinite, as torch's, where a class
    has a logit of -inf and a weight; without a weight it adds 0.

    Source: Aurelio et al., "Learning from imbalanced data sets with weighted cross-entropy function", Neural
    Processing Letters 50, 2019 (only its abstract was at hand: inverse class priors as weights;
    :class:`~classbalance_losses.PixelFrequency` is that).

    Args:
        weight: w, a tensor, array or sequence (C,) of non-negative numbers; an estimator, such as
            :class:`~classbalance_losses.PixelFrequency`, which sees every batch; or ``None`` for ones. The attribute
            ``weight`` takes the same later, and a tensor is saved with the module; one that requires a gradient, as
            an ``nn.Parameter`` does, is kept itself, not a copy, and gets one, of Z too. Estimates are constants.
        normalize: "weights" or "pixels".
        label_smoothing: ε in [0, 1].
        upsample: "linear" to interpolate the logits to the target's size; ``None`` where they have it.
        align_corners: of the interpolation, as in ``torch.nn.functional.interpolate``.
        ignore_index: the label of pixels to leave out; their logits may be NaN.
        reduction: "mean" as above; "sum" without the division; "none" the terms, in the target's shape.
        process_group: ``None`` for this process's statistics, "world" or a group for those of all its ranks.

    Shape:
        - input: logits (N, C, \*), of any floating-point dtype; the loss is float32, or float64 for float64.
          With ``upsample``, of any size in one to three spatial axes; full-size logits are not kept.
        - target: class indices (N, \*) of uint8, int16, int32 or int64.
        - pixel_weight: q, (N, \*), non-negative; may require a gradient. Not part of Z.

    Raises:
        ValueError: for shapes or options out of range.
        TypeError: for dtypes.
        IndexError: for a target that is no class (on the CPU).
    """

    _shown = ("normalize", "label_smoothing")
    _vector = "weight"
    weight: Tensor | Estimator | None

    def __init__(
        self,
        weight: Numbers | Estimator | None = None,
        *,
        normalize: str = "weights",
        label_smoothing: float = 0.0,
        upsample: str | None = None,
        align_corners: bool = False,
        ignore_index: int = -100,
        reduction: str = "mean",
        process_group: ProcessGroup = None,
    ) -> None:
        _check(normalize, label_smoothing)
        super().__init__(
            upsample=upsample,
            align_corners=align_corners,
            ignore_index=ignore_index,
            reduction=reduction,
            process_group=process_group,
        )
        setattr(self, self._vector, weight)  # a sequence becomes a tensor
        self.normalize = normalize
        self.label_smoothing = label_smoothing

    def _checked(self, value: Any) -> Any:
        if value is None or (callable(value) and not isinstance(value, (Tensor, type))):
            return value
        vector = as_class_vector("weight", value)
        return (
            value if isinstance(value, Tensor) and value.requires_grad else vector
        )  # a learned one is kept itself

    def forward(self, input: Tensor, target: Tensor, *, pixel_weight: Tensor | None = None) -> Tensor:
        """Return the loss of logits (N, C, *) against class indices (N, *)."""
        return weighted_cross_entropy_loss(
            input,
            target,
            self.weight,
            pixel_weight=pixel_weight,
            normalize=self.normalize,
            label_smoothing=self.label_smoothing,
            **self.common,
        )


def _check(normalize: str, label_smoothing: float) -> None:
    check_choice("normalize", normalize, ("weights", "pixels"))
    check_range("label_smoothing", label_smoothing, 0, 1)
