r"""Focal loss over the softmax (Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017).

.. math:: L = \frac{1}{N} \sum_i \alpha_{y_i} (1 - p_{i,y_i})^{\gamma}\, \ell_i
"""

from __future__ import annotations

from numbers import Real
from typing import Any, cast

import torch
from torch import Tensor

from classbalance_losses._distributed import ProcessGroup
from classbalance_losses._recompute import recomputable
from classbalance_losses._validate import (
    Numbers,
    as_class_vector,
    can_read_values,
    check_call,
    check_range,
    class_vector_of_call,
)
from classbalance_losses.kernels.plain import is_constant
from classbalance_losses.losses._base import VectorLoss
from classbalance_losses.ops.fused import fused_mean
from classbalance_losses.ops.logits import logits_for
from classbalance_losses.ops.pixel import counted_pixels, pixel_cross_entropy
from classbalance_losses.ops.reduction import global_sum, reduce_loss
from classbalance_losses.ops.shape import focal_modulated
from classbalance_losses.ops.weights import kept_weight, per_pixel, scaled


@recomputable
def focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    gamma: float = 2.0,
    alpha: float | Numbers | None = None,
    upsample: str | None = None,
    align_corners: bool = False,
    ignore_index: int = -100,
    reduction: str = "mean",
    process_group: ProcessGroup = None,
) -> Tensor:
    """Functional form of :class:`classbalance_losses.FocalLoss`, which describes the arguments."""
    check_range("gamma", gamma, 0)
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
    logits = logits_for(input, target, upsample, align_corners)
    loss = pixel_cross_entropy(logits, target, keep)
    if alpha is None:
        fused = fused_mean(
            loss,
            target,
            keep,
            None,
            pixel_weight,
            gamma=gamma,
            reduction=reduction,
            process_group=process_group,
        )
        if fused is not None:
            return fused
    loss = focal_modulated(loss, gamma)
    balance = _balance(alpha, input, target, keep, loss.dtype)
    weighted = scaled(loss, balance, kept_weight(pixel_weight, keep, loss.dtype))
    valid = global_sum(keep, process_group)
    return reduce_loss(weighted, reduction=reduction, normalizer=valid, process_group=process_group)


def _balance(
    alpha: float | Numbers | None,
    input: Tensor,
    target: Tensor,
    keep: Tensor,
    dtype: torch.dtype,
) -> Tensor | None:
    """Return α_y for each pixel, or one number for all, or None for 1."""
    if alpha is None:
        return None
    if isinstance(alpha, Tensor) and alpha.ndim == 0 and not (can_read_values(alpha) and is_constant(alpha)):
        return alpha.to(dtype)
    if isinstance(alpha, Real) or getattr(alpha, "ndim", 1) == 0:
        return torch.full((), cast("float", _checked_alpha(alpha)), dtype=dtype, device=input.device)
    return per_pixel(class_vector_of_call("alpha", alpha, input), target, keep, dtype)


def _checked_alpha(alpha: float | Numbers | None) -> float | Tensor | None:
    if alpha is None:
        return None
    if isinstance(alpha, Tensor):
        alpha = alpha.detach()
    if isinstance(alpha, Real) or getattr(alpha, "ndim", 1) == 0:  # one number, if as a tensor or an array
        number = cast("float", alpha if isinstance(alpha, Real) else float(cast("Tensor", alpha)))
        check_range("alpha", number, 0)
        return float(number)
    return as_class_vector("alpha", alpha)


class FocalLoss(VectorLoss):
    r"""Focal loss over the softmax: well-classified pixels fade as :math:`(1 - p_y)^\gamma` (Lin et al. 2017).

    .. math:: L = \frac{1}{N} \sum_i \alpha_{y_i} (1 - p_{i,y_i})^{\gamma}\, q_i\, \ell_i

    The factor on the cross-entropy's gradient is
    :math:`F(p) = (1-p)^\gamma - \gamma p (1-p)^{\gamma-1} \log p`, which exceeds 1 for hard pixels (up to 1.22
    for γ = 2): the loss does not only fade the easy ones. γ = 0 is cross-entropy.

    The original is one sigmoid a class, divided by the number of objects; with a softmax, the mean over valid
    pixels is the usual choice, and what makes γ = 0 equal ``F.cross_entropy``. A scalar α only scales; pass a
    vector to balance classes. Value and gradient are finite for any logits, also for γ < 1.

    Args:
        gamma: γ ≥ 0.
        alpha: ``None``, a number ≥ 0 (a tensor of one will do), or one number for each class, (C,). The attribute takes
            the same later; a tensor that requires a gradient gets one.
        upsample: "linear" to interpolate the logits to the target's size; ``None`` where they have it.
        align_corners: of the interpolation, as in ``torch.nn.functional.interpolate``.
        ignore_index: the label of pixels to leave out; their logits may be NaN.
        reduction: "mean" over the valid pixels; "sum"; "none" the terms, in the target's shape.
        process_group: ``None`` to count this process's valid pixels, "world" or a group for all its ranks'.

    Shape:
        - input: logits (N, C, \*), of any floating-point dtype; the loss is float32, or float64 for float64.
          With ``upsample``, of any size in one to three spatial axes; full-size logits are not kept.
        - target: class indices (N, \*) of uint8, int16, int32 or int64.
        - pixel_weight: q, (N, \*), non-negative; may require a gradient.

    Raises:
        ValueError: for shapes or options out of range.
        TypeError: for dtypes.
        IndexError: for a target that is no class (on the CPU).
    """

    _shown = ("gamma", "alpha")
    _vector = "alpha"
    alpha: float | Tensor | None

    def __init__(
        self,
        *,
        gamma: float = 2.0,
        alpha: float | Numbers | None = None,
        upsample: str | None = None,
        align_corners: bool = False,
        ignore_index: int = -100,
        reduction: str = "mean",
        process_group: ProcessGroup = None,
    ) -> None:
        check_range("gamma", gamma, 0)
        super().__init__(
            upsample=upsample,
            align_corners=align_corners,
            ignore_index=ignore_index,
            reduction=reduction,
            process_group=process_group,
        )
        self.gamma = gamma
        setattr(self, self._vector, alpha)  # a sequence becomes a tensor

    def _checked(self, value: Any) -> Any:
        checked = _checked_alpha(value)
        return (
            value if isinstance(value, Tensor) and value.requires_grad else checked
        )  # a learned one is kept itself

    def forward(self, input: Tensor, target: Tensor, *, pixel_weight: Tensor | None = None) -> Tensor:
        """Return the loss of logits (N, C, *) against class indices (N, *)."""
        return focal_loss(
            input, target, pixel_weight=pixel_weight, gamma=self.gamma, alpha=self.alpha, **self.common
        )
