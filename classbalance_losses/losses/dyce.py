r"""DyCE, dynamic cross-entropy: the hardest pixels, re-weighted by their class counts.

Basak and Yin, "SemiDAViL: Semi-supervised Domain Adaptation with Vision-Language Guidance for Semantic
Segmentation", CVPR 2025, section 3.4, equation 9:

.. math::
    L = \frac{1}{f_H^{\omega}} \sum_c \frac{1}{f_c^{1-\omega}} \sum_{i \in H,\, y_i = c} \ell_i
      = \sum_{c:\, f_c > 0} \pi_c^{\omega}\, m_c,
    \qquad \pi_c = f_c / f_H

H is the set of the hardest pixels, :math:`f_H` its size, :math:`f_c` the number of its pixels of class c,
:math:`m_c` their mean cross-entropy. Selection and counts are constants. Pixels that tie for the last places
of H are in it by a fraction :math:`h_i`, and count so.
"""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from classbalance_losses._options import Common, shows_options
from classbalance_losses._recompute import recomputable
from classbalance_losses._validate_features import check_integer
from classbalance_losses._validate_options import check_choice, check_range
from classbalance_losses.kernels.forms.reference import CrossEntropy, smoothed
from classbalance_losses.losses._base import PixelLoss
from classbalance_losses.ops.batch import Batch
from classbalance_losses.ops.soft import batch_for
from classbalance_losses.ops.sums import Needs
from classbalance_losses.ops.weights import inverse_power


@shows_options
@recomputable
def dyce_loss(
    input: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    omega: float = 0.5,
    hard_fraction: float = 0.2,
    scope: str = "batch",
    min_kept: int = 1,
    normalize: str = "paper",
    label_smoothing: float = 0.0,
    **common: Unpack[Common],
) -> Tensor:
    """Functional form of :class:`classbalance_losses.DyCELoss`, which describes the arguments."""
    batch = batch_for(input, target, pixel_weight, common)
    return _loss(batch, omega, hard_fraction, scope, min_kept, normalize, label_smoothing)


def _loss(
    batch: Batch,
    omega: float,
    hard_fraction: float,
    scope: str,
    min_kept: int,
    normalize: str,
    label_smoothing: float,
) -> Tensor:
    _check(omega, hard_fraction, scope, min_kept, normalize, label_smoothing)
    batch = batch.without_weightless()
    form = smoothed(CrossEntropy(ranked=True), label_smoothing)
    # f_c = Σ h_i and Σ h_i q_i ℓ_i
    sums = batch.mined_sums(form, fraction=hard_fraction, min_kept=min_kept, scope=scope)
    coefficient = inverse_power(sums.number, 1 - omega, batch.dtype)  # f_c^-(1-ω)
    f_hard = sums.number.sum()
    normalizer = f_hard**omega if normalize == "paper" else (coefficient * sums.number).sum()
    return batch.weighted(sums, coefficient, normalizer)


class DyCELoss(PixelLoss):
    r"""Cross-entropy over the hardest pixels, re-weighted by their class counts (SemiDAViL, equation 9).

    .. math::
        L = \frac{1}{f_H^{\omega}} \sum_i h_i\, f_{y_i}^{\omega - 1}\, q_i\, \ell_i

    H holds the k valid pixels with the largest cross-entropy :math:`\ell_i`, by :math:`h_i = 1`,
    k = max(min_kept, floor(hard_fraction · valid)). Of T pixels that tie for the last k − A places each has
    :math:`h_i = (k - A) / T`; all others have 0. :math:`f_c = \sum_{y_i = c} h_i` counts H's pixels of class c, and
    :math:`f_H = |H| = k`. Selection and counts carry no gradient, and q does not enter them, except that a pixel
    of weight 0 is not valid:

    .. math::
        \partial L / \partial z_{ik} = f_H^{-\omega} h_i\, f_{y_i}^{\omega - 1} q_i\, (p_{ik} - 1[k = y_i])

    ω = 1 is plain hard-pixel mining (OHEM) with exactly k pixels; ω = 0 sums the class means of H. The value is at
    least the mean cross-entropy over H, and :math:`K^{1-\omega}` times it for K equally frequent classes; H itself
    is hard: expect a larger loss, and gradients, than cross-entropy's. ``normalize="unit"`` keeps its scale.

    Paper, code and this class: the paper gives neither ω nor the share of hard pixels; the released code
    (hritam-98/SemiDAViL) has 0.5 and 0.2, mines over all images of a batch, and adds 1e-8 to the counts; its
    k is not at least 1, and an empty batch gives a constant without a graph. Equation 10 prints a factor p
    for 1/p. Here k ≥ ``min_kept``, absent classes are skipped, and an empty H gives 0 in the graph.

    Args:
        omega: ω in [0, 1]; small values lift rare classes more.
        hard_fraction: share of the valid pixels that H holds, in (0, 1].
        scope: "batch" ranks the pixels of the whole batch, "image" those of each image. Counts are the
            batch's in both.
        min_kept: smallest k, ≥ 0; an H smaller than that holds all valid pixels.
        normalize: "paper" divides by :math:`f_H^\omega` (equation 9), "unit" by the sum of the coefficients
            :math:`h_i f_{y_i}^{\omega-1}`, so that equal losses keep their value.
        label_smoothing: ε in [0, 1]: a pixel's loss is
            :math:`(1 - \varepsilon) \ell_i - \frac{\varepsilon}{C} \sum_c \log p_{ic}`
            in the place of :math:`\ell_i`; counts and classes stay the labels'.
        task: "multiclass" for a softmax, "binary" for one logit a pixel, "multilabel" for a sigmoid each.
        upsample: "linear" to interpolate the logits to the target's size; ``None`` where they have it.
        align_corners: of the interpolation, as in ``torch.nn.functional.interpolate``.
        ignore_index: the label of pixels to leave out, or several; their logits may be NaN.
        reduction: "mean" as above; "sum" without the division; "none" the terms
            :math:`h_i f_{y_i}^{\omega-1} q_i \ell_i`, 0 off H, in the target's shape.
        process_group: ``None`` for this process's statistics, "world" or a group for those of all its ranks,
            the threshold of H included.

    Shape:
        - input: logits (N, C, \*), of any floating-point dtype; the loss is float32, or float64 for float64.
          With ``upsample``, of any size in one to three spatial axes; on fast paths full-size logits are not kept.
        - target: class indices (N, \*) of uint8, int16, int32 or int64, or shares (N, C, \*), floats in [0, 1]; of
          labels 0 and 1, any integer dtype or bool, or shares: (N, L, \*), for one (N, \*) too.
        - pixel_weight: q, (N, \*), of labels in the target's shape, non-negative; may require a gradient.
          0 leaves a pixel out, as ``ignore_index`` does.

    Raises:
        ValueError: for shapes or options out of range.
        TypeError: for dtypes.
        IndexError: for a target that is no class (on the CPU).

    Examples:
        >>> criterion = DyCELoss(ignore_index=255)
        >>> logits = torch.randn(2, 19, 64, 64, requires_grad=True)
        >>> criterion(logits, torch.randint(0, 19, (2, 64, 64))).backward()
    """

    _shown = ("omega", "hard_fraction", "scope", "min_kept", "normalize")

    @shows_options
    def __init__(
        self,
        *,
        omega: float = 0.5,
        hard_fraction: float = 0.2,
        scope: str = "batch",
        min_kept: int = 1,
        normalize: str = "paper",
        label_smoothing: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        _check(omega, hard_fraction, scope, min_kept, normalize, label_smoothing)
        super().__init__(**common)
        self.omega = omega
        self.hard_fraction = hard_fraction
        self.scope = scope
        self.min_kept = min_kept
        self.normalize = normalize
        self.label_smoothing = label_smoothing

    @property
    def needs(self) -> Needs:
        """ℓ, so that equal ones tie."""
        is_smooth = self.label_smoothing > 0
        return Needs(loss=not is_smooth, ranked=True, form=is_smooth)

    def of(self, batch: Batch) -> Tensor:
        """Return the loss of a batch that was checked."""
        return _loss(
            batch,
            self.omega,
            self.hard_fraction,
            self.scope,
            self.min_kept,
            self.normalize,
            self.label_smoothing,
        )

    def forward(self, input: Tensor, target: Tensor, *, pixel_weight: Tensor | None = None) -> Tensor:
        """Return the loss of logits (N, C, *) against labels (N, *)."""
        return dyce_loss(
            input,
            target,
            pixel_weight=pixel_weight,
            omega=self.omega,
            hard_fraction=self.hard_fraction,
            scope=self.scope,
            min_kept=self.min_kept,
            normalize=self.normalize,
            label_smoothing=self.label_smoothing,
            **self.common,
        )


def _check(
    omega: float, hard_fraction: float, scope: str, min_kept: int, normalize: str, label_smoothing: float
) -> None:
    check_range("label_smoothing", label_smoothing, 0, 1)
    check_range("omega", omega, 0, 1)
    check_range("hard_fraction", hard_fraction, 0, 1, open_low=True)
    check_choice("scope", scope, ("batch", "image"))
    check_integer("min_kept", min_kept)
    check_range("min_kept", min_kept, 0)
    check_choice("normalize", normalize, ("paper", "unit"))
