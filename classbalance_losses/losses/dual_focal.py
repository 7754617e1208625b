r"""Dual focal loss (Hossain, Betts, Paplinski, Neurocomputing 462, 2021).

.. math::
    \ell_i = -\log p_y - \beta \sum_{j \ne y} \log(\rho - p_j)
             + \alpha \Big[ (1 - p_y)^\gamma + \sum_{j \ne y} p_j^\gamma \Big]
"""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from classbalance_losses._options import Common, shows_options
from classbalance_losses._recompute import recomputable
from classbalance_losses._validate_options import check_range
from classbalance_losses.kernels.forms.reference import DualFocal, smoothed
from classbalance_losses.losses._base import PixelLoss
from classbalance_losses.ops.batch import Batch
from classbalance_losses.ops.soft import batch_for
from classbalance_losses.ops.sums import Needs


@shows_options
@recomputable
def dual_focal_loss(
    input: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    rho: float = 1.0,
    label_smoothing: float = 0.0,
    **common: Unpack[Common],
) -> Tensor:
    """Functional form of :class:`classbalance_losses.DualFocalLoss`, which describes the arguments."""
    return _loss(
        batch_for(input, target, pixel_weight, common), DualFocal(alpha, beta, gamma, rho), label_smoothing
    )


def _loss(batch: Batch, form: DualFocal, label_smoothing: float) -> Tensor:
    _check(*form, label_smoothing)
    return batch.mean_of(smoothed(form, label_smoothing))


class DualFocalLoss(PixelLoss):
    r"""Dual focal loss: cross-entropy, a term on the other classes, and an absolute error (Hossain et al. 2021).

    .. math::
        L = \frac{1}{N} \sum_i q_i \Big( -\log p_y - \beta \sum_{j \ne y} \log(\rho - p_j)
            + \alpha \Big[ (1 - p_y)^\gamma + \sum_{j \ne y} p_j^\gamma \Big] \Big)

    α = β = 0 is cross-entropy; α = 0, β = ρ = 1 sums C binary cross-entropies over the softmax; γ = 1 makes
    the α term :math:`2 \alpha (1 - p_y)`. The α term is added: it raises the loss.

    Source: the authors' MATLAB code (mhos0007/Dual_Focal_Loss). It floors both logarithms' arguments at 0.001,
    which takes the gradient from the hardest pixels, trains with :math:`(2T-1)^\gamma` where the derivative is
    :math:`\gamma |T-Y|^{\gamma-1}` (equal for γ = 1), and reports a forward value without β. Here
    the logarithms are exact and the gradient is the derivative. Some ports have the sign of the α
    term wrong. Not to be confused with "Dual Focal Loss for Calibration" (Tao et al. 2023).

    Args:
        alpha: α ≥ 0.
        beta: β ≥ 0.
        gamma: γ ≥ 0.
        rho: ρ ≥ 1; above 1 the loss is offset by :math:`-\beta (C-1) \log \rho` and may be negative.
        label_smoothing: ε in [0, 1]: a pixel's loss is
            :math:`(1 - \varepsilon) \varphi_y + \frac{\varepsilon}{C} \sum_c \varphi_c`
            in the place of :math:`\varphi_y`.
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

    _shown = ("alpha", "beta", "gamma", "rho")

    @shows_options
    def __init__(
        self,
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        rho: float = 1.0,
        label_smoothing: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        _check(alpha, beta, gamma, rho, label_smoothing)
        super().__init__(**common)
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma
        self.rho = rho
        self.label_smoothing = label_smoothing

    @property
    def needs(self) -> Needs:
        """A form of its own."""
        return Needs(form=True)

    def of(self, batch: Batch) -> Tensor:
        """Return the loss of a batch that was checked."""
        return _loss(batch, DualFocal(self.alpha, self.beta, self.gamma, self.rho), self.label_smoothing)

    def forward(self, input: Tensor, target: Tensor, *, pixel_weight: Tensor | None = None) -> Tensor:
        """Return the loss of logits (N, C, *) against labels (N, *)."""
        return dual_focal_loss(
            input,
            target,
            pixel_weight=pixel_weight,
            alpha=self.alpha,
            beta=self.beta,
            gamma=self.gamma,
            rho=self.rho,
            label_smoothing=self.label_smoothing,
            **self.common,
        )


def _check(alpha: float, beta: float, gamma: float, rho: float, label_smoothing: float) -> None:
    check_range("alpha", alpha, 0)
    check_range("beta", beta, 0)
    check_range("gamma", gamma, 0)
    check_range("rho", rho, 1)
    check_range("label_smoothing", label_smoothing, 0, 1)
