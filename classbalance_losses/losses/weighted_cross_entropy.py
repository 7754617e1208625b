r"""Weighted cross-entropy: class weights that are given, or estimated from the batches.

.. math:: L = \frac{1}{Z} \sum_i w_{y_i}\, \ell_i, \qquad Z = \sum_i w_{y_i} \;\text{or}\; N
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor
from typing_extensions import Unpack

from classbalance_losses._options import Common, shows_options
from classbalance_losses._recompute import recomputable
from classbalance_losses._validate_classes import (
    Numbers,
    as_class_vector,
    as_numbers,
    check_class_device,
    check_class_vector,
)
from classbalance_losses._validate_options import check_choice, check_range
from classbalance_losses.kernels.forms.reference import CrossEntropy, Smoothed
from classbalance_losses.losses._base import VectorLoss
from classbalance_losses.ops.batch import Batch
from classbalance_losses.ops.batch_sums import BatchSums
from classbalance_losses.ops.soft import batch_for
from classbalance_losses.state.estimators import estimate, is_estimator

# sums over the batch's classes -> weights (C,); the former signature, of maps, works until 0.3.0
Estimator = Callable[[BatchSums], Tensor]


@shows_options
@recomputable
def weighted_cross_entropy_loss(
    input: Tensor,
    target: Tensor,
    weight: Numbers | Estimator | None = None,
    *,
    pixel_weight: Tensor | None = None,
    normalize: str = "weights",
    label_smoothing: float = 0.0,
    **common: Unpack[Common],
) -> Tensor:
    """Functional form of :class:`classbalance_losses.WeightedCrossEntropyLoss`, which describes the arguments."""
    batch = batch_for(input, target, pixel_weight, common, learned=(weight,))
    if isinstance(weight, Tensor) and weight.ndim == 2 and batch.takes_image_weights(weight):
        batch, weight = batch.by_image(), weight.squeeze(0)  # of one image they are those of its classes
    return _loss(batch, weight, normalize, label_smoothing)


def _loss(batch: Batch, weight: Numbers | Estimator | None, normalize: str, label_smoothing: float) -> Tensor:
    _check(normalize, label_smoothing)
    w = _class_weight(weight, batch)
    over = w if normalize == "weights" else None
    if label_smoothing == 0:
        return batch.mean_of(CrossEntropy(), w, over)
    w = batch.ones() if w is None else w
    return batch.mean_of(Smoothed(label_smoothing, w), over=over)


def _class_weight(weight: Numbers | Estimator | None, batch: Batch) -> Tensor | None:
    """Return w (C,), the given numbers, which may be learned, or what the estimator makes of this batch; None: 1."""
    if weight is None:
        return None
    if not is_estimator(weight):
        return batch.class_vector("weight", weight)
    estimated = as_numbers("weight", estimate(cast("Estimator", weight), batch.statistics()))
    check_class_vector("weight", estimated, (batch.classes.num_classes,))
    check_class_device("weight", estimated, batch.logits.input)
    return estimated.detach().to(batch.dtype)


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
            Of labels (2,) or (L, 2), absent and present. The functional form also takes (N, C), for each image.
        normalize: "weights" or "pixels".
        label_smoothing: ε in [0, 1].
        task: "multiclass" for a softmax, "binary" for one logit a pixel, "multilabel" for a sigmoid each.
        upsample: "linear" to interpolate the logits to the target's size; ``None`` where they have it.
        align_corners: of the interpolation, as in ``torch.nn.functional.interpolate``.
        ignore_index: the label of pixels to leave out, or several; their logits may be NaN.
        reduction: "mean" as above; "sum" without the division; "none" the terms, in the target's shape.
        process_group: ``None`` for this process's statistics, "world" or a group for those of all its ranks.

    Shape:
        - input: logits (N, C, \*), of any floating-point dtype; the loss is float32, or float64 for float64.
          With ``upsample``, of any size in one to three spatial axes; on fast paths full-size logits are not kept.
        - target: class indices (N, \*) of uint8, int16, int32 or int64, or shares (N, C, \*), floats in [0, 1]; of
          labels 0 and 1, any integer dtype or bool, or shares: (N, L, \*), for one (N, \*) too.
        - pixel_weight: q, (N, \*), of labels in the target's shape, non-negative; may require a gradient.
          Not part of Z.

    Raises:
        ValueError: for shapes or options out of range.
        TypeError: for dtypes.
        IndexError: for a target that is no class (on the CPU).
    """

    _shown = ("normalize", "label_smoothing")
    _vector = "weight"
    weight: Tensor | Estimator | None

    @shows_options
    def __init__(
        self,
        weight: Numbers | Estimator | None = None,
        *,
        normalize: str = "weights",
        label_smoothing: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        _check(normalize, label_smoothing)
        super().__init__(**common)
        setattr(self, self._vector, weight)  # a sequence becomes a tensor
        self.normalize = normalize
        self.label_smoothing = label_smoothing

    def _checked(self, value: Any) -> Any:
        if value is None or is_estimator(value):
            return value
        vector = as_class_vector("weight", value, self.task)
        return (
            value if isinstance(value, Tensor) and value.requires_grad else vector
        )  # a learned one is kept itself

    @property
    def learned(self) -> tuple[object, ...]:
        """w, if it is given."""
        return (self.weight,)

    def of(self, batch: Batch) -> Tensor:
        """Return the loss of a batch that was checked."""
        return _loss(batch, self.weight, self.normalize, self.label_smoothing)

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
