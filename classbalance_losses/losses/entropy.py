r"""Entropy of predictions without labels, class by class, with class weights, GBW's among them.

.. math::
    L = \frac{1}{N} \sum_i q_i \sum_c v_c\, h_{ic}, \qquad h_{ic} = -p_{ic} \log p_{ic}

Entropy minimisation is Grandvalet and Bengio's (NeurIPS 2004), and Vu et al.'s in adaptation (ADVENT, CVPR 2019). GBW
has a term for each class, and a weight for each term (Alcover-Couso et al., arXiv 2407.01327, section 3.1, equation 2);
its weights solve the programme of equation 11 for the gradients of these terms.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from classbalance_losses._distributed import ProcessGroup, all_reduce_sum
from classbalance_losses._recompute import recomputable
from classbalance_losses._validate_classes import Numbers, as_class_vector, class_vector_of_call
from classbalance_losses._validate_options import check_choice, check_common, check_range
from classbalance_losses._validate_unlabelled import check_unlabelled
from classbalance_losses.kernels.call import accumulation_dtype
from classbalance_losses.kernels.factors import class_rows
from classbalance_losses.kernels.plain import keepable
from classbalance_losses.losses._base import FeatureLoss, HoldsVector
from classbalance_losses.ops.precision import without_autocast
from classbalance_losses.ops.projection import solve_class_weights
from classbalance_losses.ops.reduction import reduce_loss

_READINGS = ("pixel_mean", "class_logits", "bias", "loss")
_FLOOR = -1000.0  # below log p of every p > 0 that a float holds: -inf times p = 0 would be NaN


class _Pixels(NamedTuple):
    """The pixels of a call."""

    probability: Tensor  # p (N, C, *), of pixels that do not count any numbers
    information: Tensor  # -p log p, the same shape
    share: Tensor | None  # q (N, *), 0 of pixels that do not count; None: 1
    number: Tensor  # N, of all ranks
    process_group: ProcessGroup


@recomputable
def entropy_loss(
    input: Tensor,
    weight: Numbers | str | None = None,
    *,
    mask: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    regularization: float = 1.0,
    gradient: str = "pixel_mean",
    reduction: str = "mean",
    process_group: ProcessGroup = None,
) -> Tensor:
    """Functional form of :class:`classbalance_losses.EntropyLoss`, which describes the arguments."""
    _check(weight, regularization, gradient, reduction, process_group)
    check_unlabelled(input, mask, pixel_weight)
    mask, pixel_weight = (None if of is None else keepable(of) for of in (mask, pixel_weight))
    with without_autocast(input):
        pixels = _pixels(input, mask, pixel_weight, process_group)
        value = pixels.information
        if weight is not None:
            own = _class_weight(weight, input, pixels, regularization, gradient)
            value = value * own.view(-1, *[1] * (input.ndim - 2))
        value = value.sum(1)
        if pixels.share is not None:
            value = value * pixels.share
        return reduce_loss(value, reduction=reduction, normalizer=pixels.number, process_group=process_group)


def entropy_gradient_norms(
    input: Tensor,
    *,
    mask: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    gradient: str = "pixel_mean",
    process_group: ProcessGroup = None,
) -> Tensor:
    r"""Return the squared gradient norm of each class's entropy, g (C,), in closed form: what GBW weighs entropies by.

    The gradient of :math:`h_{ic} = -p_{ic} \log p_{ic}` with respect to the pixel's logits is
    :math:`\delta_{ic} = -(1 + \log p_{ic})\, p_{ic}\, (e_c - p_i)`, and with q = ``pixel_weight``

    ===================== ====================================================================
    ``gradient``          :math:`g_c`
    ===================== ====================================================================
    "pixel_mean"          :math:`\frac{1}{N} \sum_i \lVert q_i \delta_{ic} \rVert^2`, at most 0.037
    "class_logits"        :math:`\lVert \nabla_z \frac{1}{N} \sum_i q_i h_{ic} \rVert^2`, the above over N
    "bias"                :math:`\lVert \frac{1}{N} \sum_i q_i \delta_{ic} \rVert^2`
    "loss"                :math:`\frac{1}{N} \sum_i q_i h_{ic}` (no squared norm)
    ===================== ====================================================================

    They are :func:`class_gradient_norms`' readings (Alcover-Couso et al., arXiv 2407.01327, section 3.2), with all N
    pixels in the place of the class's: a prediction has some of every class in every pixel. The weights of
    ``EntropyLoss("gbw")`` are ``solve_class_weights(g, regularization=λ)``.

    Args:
        input: logits (N, C, \*).
        mask: (N, \*), bool: the pixels that count; ``None`` for all.
        pixel_weight: q, (N, \*), non-negative.
        gradient: one of the rows above.
        process_group: ``None``, "world" or a group, over whose ranks the sums run.

    Returns:
        g, (C,), in float32 or the logits' float64; no gradient.

    Raises:
        ValueError: for shapes or options out of range.
        TypeError: for dtypes.
    """
    check_choice("gradient", gradient, _READINGS)
    check_common(-100, "mean", process_group)
    check_unlabelled(input, mask, pixel_weight)
    with without_autocast(input):
        return _norms(_pixels(input.detach(), mask, pixel_weight, process_group), gradient)


def _pixels(
    input: Tensor, mask: Tensor | None, pixel_weight: Tensor | None, process_group: ProcessGroup
) -> _Pixels:
    dtype = accumulation_dtype(input.dtype)
    logits = input if mask is None else torch.where(mask.unsqueeze(1), input, 0)
    log_p = logits.log_softmax(1, dtype=dtype)
    probability = log_p.exp()
    information = -(probability * log_p.clamp(min=_FLOOR))
    share = None if pixel_weight is None else pixel_weight.to(dtype)
    if mask is None:
        size = input.shape[0] * prod(input.shape[2:])
        number = torch.full((), size, dtype=torch.int64, device=input.device)
    else:
        share = mask.to(dtype) if share is None else torch.where(mask, share, 0)
        number = mask.sum()
    return _Pixels(probability, information, share, all_reduce_sum(number, process_group), process_group)


def _class_weight(
    weight: Numbers | str, input: Tensor, pixels: _Pixels, regularization: float, gradient: str
) -> Tensor:
    """Return v (C,): the given numbers, or GBW's for this batch, which are constants."""
    if not isinstance(weight, str):
        vector = class_vector_of_call("weight", weight, input, (input.shape[1],))
        return vector.to(pixels.information.dtype)
    return solve_class_weights(_norms(pixels, gradient), regularization=regularization)


def _norms(pixels: _Pixels, gradient: str) -> Tensor:
    """Return g (C,), a constant."""
    p, h = pixels.probability.detach(), pixels.information.detach()
    share = None if pixels.share is None else pixels.share.detach().unsqueeze(1)
    if gradient == "loss":
        return _mean(pixels, h if share is None else h * share)
    slope = h - p  # -(1 + log p) p
    slope = slope if share is None else slope * share
    if gradient == "bias":
        return _mean_gradients(pixels, slope, p).square().sum(1)
    length = (1 - 2 * p + p.square().sum(1, keepdim=True)).clamp(min=0)  # ‖e_c - p‖², rounded
    norms = _mean(pixels, slope.square() * length)
    return norms if gradient == "pixel_mean" else norms / pixels.number.clamp(min=1)


def _mean_gradients(pixels: _Pixels, slope: Tensor, p: Tensor) -> Tensor:
    """Return the mean over the pixels of each class's gradient, (C, C): row c is that of h_c to all logits."""
    toward, away = class_rows(slope), class_rows(p)
    table = torch.diag_embed(toward.sum(2)) - toward @ away.mT
    return _over_pixels(pixels, table.sum(0))


def _mean(pixels: _Pixels, values: Tensor) -> Tensor:
    """Return the mean of values (N, C, *) over the pixels, (C,)."""
    return _over_pixels(pixels, values.sum([0, *range(2, values.ndim)]))


def _over_pixels(pixels: _Pixels, total: Tensor) -> Tensor:
    """Return this rank's sum as the mean over the pixels of all ranks, 0 without pixels."""
    return all_reduce_sum(total, pixels.process_group) / pixels.number.clamp(min=1)


class EntropyLoss(HoldsVector, FeatureLoss):
    r"""Entropy of predictions without labels, each class's part with a weight of its own.

    .. math::
        L = \frac{1}{N} \sum_i q_i \sum_c v_c\, (-p_{ic} \log p_{ic})

    Without weights it is the mean entropy of the pixels, which entropy minimisation makes small on unlabelled images
    (Grandvalet and Bengio, NeurIPS 2004; MinEnt of Vu et al., ADVENT, CVPR 2019, which divides it by log C).
    ``weight="gbw"`` is GBW on it (Alcover-Couso et al., arXiv 2407.01327, section 3.1): v solves GBW's programme,
    equation 11, for the squared gradient norms of the classes' own terms, see
    :func:`classbalance_losses.functional.entropy_gradient_norms`. v carries no gradient.

    Reading: equation 2 divides a class's term by the number of its labels, of which there are none here. N, all pixels,
    is the one divisor with which weights of 1 give the loss that the weighted methods have without GBW.

    Scale: with "pixel_mean" no norm exceeds 0.037, where those of a cross-entropy reach 2. So at the paper's λ = 1
    every weight lies within 0.02 of 1; weights that move want a λ of some hundredths.

    Args:
        weight: v, a tensor, array or sequence (C,) of non-negative numbers; "gbw"; or ``None`` for ones. The attribute
            takes the same later. Numbers are saved with the module; a tensor that requires a gradient gets one.
        regularization: λ > 0 of "gbw", in the units of g.
        gradient: of "gbw": "pixel_mean", "class_logits", "bias" or "loss".
        reduction: "mean" over the pixels that count; "sum"; "none" the terms, (N, \*).
        process_group: ``None`` for this process's statistics, "world" or a group for those of all its ranks.

    Shape:
        - input: logits (N, C, \*), of any floating-point dtype; the loss is float32, or float64 for float64.
          A logit of -inf is a class that cannot be: it adds 0, and its gradient is 0.
        - mask: (N, \*), bool: the pixels that count, all without it. Logits of others may be NaN.
        - pixel_weight: q, (N, \*), non-negative; may require a gradient. Not part of N. It scales the pixel's
          gradient in g too, as the confidence of a pseudo-label does in GBW's equation 12.

    Raises:
        ValueError: for shapes or options out of range.
        TypeError: for dtypes.

    Examples:
        >>> logits = torch.randn(2, 19, 8, 8, requires_grad=True)
        >>> EntropyLoss("gbw", regularization=0.02)(logits).backward()
    """

    _vector = "weight"
    weight: Tensor | str | None

    def __init__(
        self,
        weight: Numbers | str | None = None,
        *,
        regularization: float = 1.0,
        gradient: str = "pixel_mean",
        reduction: str = "mean",
        process_group: ProcessGroup = None,
    ) -> None:
        _check(weight, regularization, gradient, reduction, process_group)
        super().__init__()
        setattr(self, self._vector, weight)  # a sequence becomes a tensor
        self.regularization = regularization
        self.gradient = gradient
        self.reduction = reduction
        self.process_group = process_group

    def _checked(self, value: Any) -> Any:
        if value is None or isinstance(value, str):
            _check_scheme(value)
            return value
        vector = as_class_vector("weight", value)
        return value if isinstance(value, Tensor) and value.requires_grad else vector

    def forward(
        self, input: Tensor, *, mask: Tensor | None = None, pixel_weight: Tensor | None = None
    ) -> Tensor:
        """Return the loss of logits (N, C, *)."""
        return entropy_loss(
            input,
            self.weight,
            mask=mask,
            pixel_weight=pixel_weight,
            regularization=self.regularization,
            gradient=self.gradient,
            reduction=self.reduction,
            process_group=self.joined_group,
        )

    def extra_repr(self) -> str:
        """Show the hyper-parameters; of GBW where it weighs."""
        own = ("weight", "regularization", "gradient") if isinstance(self.weight, str) else ()
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in (*own, "reduction"))


def _check(
    weight: Numbers | str | None,
    regularization: float,
    gradient: str,
    reduction: str,
    process_group: ProcessGroup,
) -> None:
    _check_scheme(weight)
    check_range("regularization", regularization, 0, open_low=True)
    check_choice("gradient", gradient, _READINGS)
    check_common(-100, reduction, process_group)


def _check_scheme(weight: object) -> None:
    """Check what is given in the place of numbers."""
    if isinstance(weight, str):
        check_choice("weight", weight, ("gbw",))
