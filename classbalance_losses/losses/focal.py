r"""Focal loss over the softmax (Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017).

.. math:: L = \frac{1}{N} \sum_i \alpha_{y_i} (1 - p_{i,y_i})^{\gamma}\, \ell_i
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, cast

import torch
from torch import Tensor
from typing_extensions import Unpack

from classbalance_losses._options import Common, shows_options
from classbalance_losses._recompute import recomputable
from classbalance_losses._validate_classes import Numbers, as_class_vector
from classbalance_losses._validate_options import check_range
from classbalance_losses.kernels.forms.reference import CrossEntropy, Focal, smoothed
from classbalance_losses.kernels.plain import can_read_values, is_constant
from classbalance_losses.losses._base import VectorLoss
from classbalance_losses.ops.batch import Batch
from classbalance_losses.ops.soft import batch_for


@shows_options
@recomputable
def focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    gamma: float = 2.0,
    alpha: float | Numbers | None = None,
    label_smoothing: float = 0.0,
    **common: Unpack[Common],
) -> Tensor:
    """Functional form of :class:`classbalance_losses.FocalLoss`, which describes the arguments."""
    batch = batch_for(input, target, pixel_weight, common, learned=(alpha,))
    return _loss(batch, gamma, alpha, label_smoothing)


def _loss(batch: Batch, gamma: float, alpha: float | Numbers | None, label_smoothing: float) -> Tensor:
    _check(gamma, label_smoothing)
    form = Focal(gamma) if gamma > 0 else CrossEntropy()
    return batch.mean_of(smoothed(form, label_smoothing), balance(alpha, batch))


def balance(alpha: float | Numbers | None, batch: Batch) -> Tensor | None:
    """Return α (C,): of one number α the same for all classes or, of labels absent and present, 1 - α and α."""
    if alpha is None:
        return None
    if not (isinstance(alpha, Real) or getattr(alpha, "ndim", 1) == 0):
        return batch.class_vector("alpha", alpha)
    if isinstance(alpha, Tensor) and not (can_read_values(alpha) and is_constant(alpha)):
        number: Tensor | float = alpha.to(batch.dtype)
    else:
        number = cast("float", _checked_alpha(alpha, batch.task))
    if batch.task == "multiclass":
        return batch.ones() * number
    sign = torch.arange(batch.classes.num_classes, dtype=torch.int64, device=batch.logits.input.device) % 2
    return torch.where(sign == 1, batch.ones() * number, 1 - batch.ones() * number)


def _checked_alpha(alpha: float | Numbers | None, task: str) -> float | Tensor | None:
    if alpha is None:
        return None
    if isinstance(alpha, Tensor):
        alpha = alpha.detach()
    if isinstance(alpha, Real) or getattr(alpha, "ndim", 1) == 0:  # one number, if as a tensor or an array
        number = cast("float", alpha if isinstance(alpha, Real) else float(cast("Tensor", alpha)))
        check_range("alpha", number, 0, math.inf if task == "multiclass" else 1)
        return float(number)
    return as_class_vector("alpha", alpha, task)


class FocalLoss(VectorLoss):
    r"""Focal loss over the softmax: well-classified pixels fade as :math:`(1 - p_y)^\gamma` (Lin et al. 2017).

    .. math:: L = \frac{1}{N} \sum_i \alpha_{y_i} (1 - p_{i,y_i})^{\gamma}\, q_i\, \ell_i

    The factor on the cross-entropy's gradient is
    :math:`F(p) = (1-p)^\gamma - \gamma p (1-p)^{\gamma-1} \log p`, which exceeds 1 for hard pixels (up to 1.22
    for γ = 2): the loss does not only fade the easy ones. γ = 0 is cross-entropy.

    The original is one sigmoid a class, divided by the number of objects: ``task="multilabel"`` with
    ``reduction="sum"``. The mean over valid pixels is the usual choice, and what makes γ = 0 equal ``F.cross_entropy``.
    For a softmax a scalar α only scales; pass a vector to balance classes. For labels, binary or many, a scalar is the
    original's: α where the label is present, 1 - α where it is absent. Value and gradient are finite where p is 0 or 1.

    Args:
        gamma: γ ≥ 0.
        alpha: ``None``, a number ≥ 0 (a tensor of one will do), in [0, 1] for labels, or one number for each class,
            (C,), (2,) or (L, 2). The attribute takes the same later; a tensor that requires a gradient gets one.
        label_smoothing: ε in [0, 1]: a pixel's loss is
            :math:`(1 - \varepsilon) \varphi_y + \frac{\varepsilon}{C} \sum_c \varphi_c`
            in the place of :math:`\varphi_y`; it does not change α.
        task: "multiclass" for a softmax, "binary" for one logit a pixel, "multilabel" for a sigmoid each.
        upsample: "linear" to interpolate the logits to the target's size; ``None`` where they have it.
        align_corners: of the interpolation, as in ``torch.nn.functional.interpolate``.
        ignore_index: the label of pixels to leave out, or several; their logits may be NaN.
        reduction: "mean" over the valid pixels; "sum"; "none" the terms, in the target's shape.
        process_group: ``None`` to count this process's valid pixels, "world" or a group for all its ranks'.

    Shape:
        - input: logits (N, C, \*), of any floating-point dtype; the loss is float32, or float64 for float64.
          With ``upsample``, of any size in one to three spatial axes; on fast paths full-size logits are not kept.
        - target: class indices (N, \*) of uint8, int16, int32 or int64, or shares (N, C, \*), floats in [0, 1]; of
          labels 0 and 1, any integer dtype or bool, or shares: (N, L, \*), for one (N, \*) too.
        - pixel_weight: q, (N, \*), of labels in the target's shape, non-negative; may require a gradient.

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
        label_smoothing: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        _check(gamma, label_smoothing)
        super().__init__(**common)
        self.gamma = gamma
        self.label_smoothing = label_smoothing
        setattr(self, self._vector, alpha)  # a sequence becomes a tensor

    def _checked(self, value: Any) -> Any:
        checked = _checked_alpha(value, self.task)
        return (
            value if isinstance(value, Tensor) and value.requires_grad else checked
        )  # a learned one is kept itself

    @property
    def learned(self) -> tuple[object, ...]:
        """α, if it is given."""
        return (self.alpha,)

    def of(self, batch: Batch) -> Tensor:
        """Return the loss of a batch that was checked."""
        return _loss(batch, self.gamma, self.alpha, self.label_smoothing)

    def forward(self, input: Tensor, target: Tensor, *, pixel_weight: Tensor | None = None) -> Tensor:
        """Return the loss of logits (N, C, *) against labels (N, *)."""
        return focal_loss(
            input,
            target,
            pixel_weight=pixel_weight,
            gamma=self.gamma,
            alpha=self.alpha,
            label_smoothing=self.label_smoothing,
            **self.common,
        )


def _check(gamma: float, label_smoothing: float) -> None:
    check_range("gamma", gamma, 0)
    check_range("label_smoothing", label_smoothing, 0, 1)
