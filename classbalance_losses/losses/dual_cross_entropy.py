r"""Dual cross-entropy (Li, Yu, Chang, Ma, Cao, IEEE Transactions on Vehicular Technology 68(5), 2019).

.. math:: \ell_i = -\log p_y + \beta \sum_{j \ne y} \log(\alpha + p_j)
"""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from classbalance_losses._options import Common, shows_options
from classbalance_losses._recompute import recomputable
from classbalance_losses._validate_options import check_range
from classbalance_losses.kernels.forms.reference import DualCrossEntropy, smoothed
from classbalance_losses.losses._base import PixelLoss
from classbalance_losses.ops.batch import Batch
from classbalance_losses.ops.soft import batch_for
from classbalance_losses.ops.sums import Needs


@shows_options
@recomputable
def dual_cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 4.5,
    label_smoothing: float = 0.0,
    **common: Unpack[Common],
) -> Tensor:
    """Functional form of :class:`classbalance_losses.DualCrossEntropyLoss`, which describes the arguments."""
    return _loss(
        batch_for(input, target, pixel_weight, common), DualCrossEntropy(alpha, beta), label_smoothing
    )


def _loss(batch: Batch, form: DualCrossEntropy, label_smoothing: float) -> Tensor:
    _check(*form, label_smoothing)
    return batch.mean_of(smoothed(form, label_smoothing))


class DualCrossEntropyLoss(PixelLoss):
    r"""Cross-entropy plus a term that grows with the probability of the other classes (Li et al. 2019).

    .. math:: L = \frac{1}{N} \sum_i q_i \Big( -\log p_y + \beta \sum_{j \ne y} \log(\alpha + p_j) \Big)

    β = 0 is cross-entropy. With α = 1 the added sum lies between :math:`\log 2\, (1 - p_y)` and
    :math:`1 - p_y`, and is 0 only at :math:`p_y = 1`. For α ≠ 1 the loss is offset by
    :math:`\beta (C-1) \log \alpha`, and may be negative for α < 1.

    Source: the paper's text was not at hand; formula and defaults (α = 1, β = 4.5) are those of two
    independent re-implementations, and agree with the paper's abstract.

    Args:
        alpha: α > 0.
        beta: β ≥ 0.
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

    _shown = ("alpha", "beta")

    @shows_options
    def __init__(
        self,
        *,
        alpha: float = 1.0,
        beta: float = 4.5,
        label_smoothing: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        _check(alpha, beta, label_smoothing)
        super().__init__(**common)
        self.alpha = alpha
        self.beta = beta
        self.label_smoothing = label_smoothing

    @property
    def needs(self) -> Needs:
        """A form of its own."""
        return Needs(form=True)

    def of(self, batch: Batch) -> Tensor:
        """Return the loss of a batch that was checked."""
        return _loss(batch, DualCrossEntropy(self.alpha, self.beta), self.label_smoothing)

    def forward(self, input: Tensor, target: Tensor, *, pixel_weight: Tensor | None = None) -> Tensor:
        """Return the loss of logits (N, C, *) against labels (N, *)."""
        return dual_cross_entropy_loss(
            input,
            target,
            pixel_weight=pixel_weight,
            alpha=self.alpha,
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            **self.common,
        )


def _check(alpha: float, beta: float, label_smoothing: float) -> None:
    check_range("alpha", alpha, 0, open_low=True)
    check_range("beta", beta, 0)
    check_range("label_smoothing", label_smoothing, 0, 1)
