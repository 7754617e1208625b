r"""Focal loss over the softmax (Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017).

.. math:: L = \frac{1}{N} \sum_i \alpha_{y_i} (1 - p_{i,y_i})^{\gamma}\, \ell_i
"""

from __future__ import annotations

from numbers import Real
from typing import Any, cast

import torch
from torch import Tensor
from typing_extensions import Unpack

from classbalance_losses._options import Common, shows_options
from classbalance_losses._recompute import recomputable
from classbalance_losses._validate import Numbers, as_class_vector, check_range, class_vector_of_call
from classbalance_losses.kernels.forms.reference import CrossEntropy, Focal
from classbalance_losses.kernels.plain import can_read_values, is_constant
from classbalance_losses.losses._base import VectorLoss
from classbalance_losses.ops.batch import Batch


@shows_options
@recomputable
def focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    gamma: float = 2.0,
    alpha: float | Numbers | None = None,
    **common: Unpack[Common],
) -> Tensor:
    """Functional form of :class:`classbalance_losses.FocalLoss`, which describes the arguments."""
    check_range("gamma", gamma, 0)
    batch = Batch(input, target, pixel_weight, common, learned=alpha if isinstance(alpha, Tensor) else None)
    values = batch.values(Focal(gamma) if gamma > 0 else CrossEntropy())
    return batch.mean(values, _balance(alpha, input, batch.dtype))


def _balance(alpha: float | Numbers | None, input: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Return α (C,), the same number for all classes maybe, or ``None`` for 1."""
    if alpha is None:
        return None
    if isinstance(alpha, Tensor) and alpha.ndim == 0 and not (can_read_values(alpha) and is_constant(alpha)):
        return alpha.to(dtype).expand(input.shape[1])
    if isinstance(alpha, Real) or getattr(alpha, "ndim", 1) == 0:
        number = cast("float", _checked_alpha(alpha))
        return torch.full((input.shape[1],), number, dtype=dtype, device=input.device)
    return class_vector_of_call("alpha", alpha, input).to(dtype)


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

    @shows_options
    def __init__(
        self,
        *,
        gamma: float = 2.0,
        alpha: float | Numbers | None = None,
        **common: Unpack[Common],
    ) -> None:
        check_range("gamma", gamma, 0)
        super().__init__(**common)
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
