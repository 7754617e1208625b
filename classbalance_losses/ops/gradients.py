r"""GBW's per-class gradient norms in closed form: no backward pass is called.

With :math:`e_c` one-hot, :math:`\delta_i = p_i - e_{y_i}` is the gradient of the cross-entropy of pixel i
with respect to its logits, and everything here is a sum of it or of its square over a class's pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from classbalance_losses._distributed import ProcessGroup, all_reduce_sum
from classbalance_losses.ops.counts import class_counts, class_means, class_sums, has_kernels
from classbalance_losses.ops.logits import Logits
from classbalance_losses.ops.pixel import (
    pixel_cross_entropy,
    pixel_cross_entropy_and_error,
    sum_over_errors,
)
from classbalance_losses.ops.weights import kept_weight, per_pixel, scaled

_OF_SQUARED_ERRORS = ("pixel_mean", "class_logits")
READINGS = ("pixel_mean", "class_logits", "official", "bias", "loss", "last_layer_weight")


class Pixels(NamedTuple):
    """What every reading starts from."""

    logits: Logits  # detached
    loss: Tensor  # ℓ (N, *), detached
    squared_error: Tensor | None  # ‖δ‖² (N, *), for the readings that need no more than it
    squared_sum: (
        Tensor | None
    )  # Σ ‖q δ‖² over each class's pixels of this rank (C,), where a kernel has added it up
    target: Tensor  # (N, *), int64
    keep: Tensor  # (N, *), bool
    weight: Tensor | None  # q, (N, *), or None for 1; the one that may have a graph
    features: Tensor | None  # (N, D, *): what enters the last layer
    n: Tensor  # n_c over all ranks, (C,), int64
    process_group: ProcessGroup

    def class_sum(self, value: Tensor) -> Tensor:
        """Sum ``value`` (N, *) over the pixels of each class, on all ranks: (C,)."""
        num_classes = self.logits.input.shape[1]
        return all_reduce_sum(class_sums(value, self.target, self.keep, num_classes), self.process_group)

    def labels_and_weight(self) -> tuple[Tensor, Tensor | None]:
        """The labels, and q where it is not 1, as maps (N, 1, *)."""
        return self.target.unsqueeze(1), None if self.weight is None else self.weight.unsqueeze(1)

    def sum_over_errors(self, function: Callable[..., Tensor], *maps: Tensor | None) -> Tensor:
        """Sum ``function(δ (n, C, p), *parts (n, K, p))`` over parts of the batch, and over all ranks.

        δ is 0 where not kept; ``maps`` (N, K, *) are cut like it, ``None`` stays.
        """
        return all_reduce_sum(
            sum_over_errors(self.logits, self.target, self.keep, function, *maps), self.process_group
        )


def gather_pixels(
    logits: Logits,
    target: Tensor,
    keep: Tensor,
    reading: str,
    *,
    pixel_weight: Tensor | None,
    features: Tensor | None,
    process_group: ProcessGroup,
) -> tuple[Tensor, Pixels]:
    """Return the cross-entropy (N, *) with its graph, and what the reading needs, as constants."""
    squared_error = None
    if reading in _OF_SQUARED_ERRORS:
        loss, squared_error = pixel_cross_entropy_and_error(logits, target, keep)
    else:
        loss = pixel_cross_entropy(logits, target, keep)
    weight = kept_weight(pixel_weight, keep, loss.dtype)
    own, squared_sum = _counts(squared_error, target, keep, logits.input.shape[1], weight)
    return loss, Pixels(
        logits=logits.detach(),
        loss=loss.detach(),
        squared_error=squared_error,
        squared_sum=squared_sum,
        target=target,
        keep=keep,
        weight=weight,
        features=features,
        n=all_reduce_sum(own, process_group),
        process_group=process_group,
    )


def _counts(
    squared_error: Tensor | None, target: Tensor, keep: Tensor, num_classes: int, weight: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return this rank's n_c and, where one kernel adds up both, Σ ‖q δ‖² (C,)."""
    if squared_error is None or not has_kernels(squared_error, target, keep):
        return class_counts(target, keep, num_classes), None
    from classbalance_losses.kernels import triton_classes  # noqa: PLC0415 - an optional dependency

    constant = None if weight is None else weight.detach()
    sums = triton_classes.class_sums(target, keep, num_classes, None, squared_error, constant)
    return sums.number[0], sums.squared[0]


def squared_norms(pixels: Pixels, reading: str) -> Tensor:
    """Return g (C,) in the loss's dtype for one of ``READINGS``; 0 for an absent class in all but "official"."""
    weight = None if pixels.weight is None else pixels.weight.detach()  # it may be learned, by the loss alone
    return _READINGS[reading](pixels._replace(weight=weight))


def _pixel_mean(pixels: Pixels) -> Tensor:
    # g_c = 1/n_c Σ ‖q_i δ_i‖²
    if pixels.squared_sum is not None:
        return class_means(all_reduce_sum(pixels.squared_sum, pixels.process_group), pixels.n)
    if pixels.squared_error is None:
        raise ValueError("this reading is of squared errors, which were not gathered")
    norms = scaled(pixels.squared_error, pixels.weight, pixels.weight)
    return class_means(pixels.class_sum(norms), pixels.n)


def _class_logits(pixels: Pixels) -> Tensor:
    # ‖∇_z l_c‖² of the class mean l_c: each pixel's gradient carries 1/n_c, so the sum of squares 1/n_c².
    return class_means(_pixel_mean(pixels), pixels.n)


def _official(pixels: Pixels) -> Tensor:
    # The released code's norm of logit channel c, all pixels' included: Σ_i δ_ic² / (n_{y_i} + 1)².
    dtype = pixels.loss.dtype
    share = per_pixel((pixels.n + 1).to(dtype) ** -2, pixels.target, pixels.keep, dtype)
    return pixels.sum_over_errors(_channel_squares, share.unsqueeze(1))


def _channel_squares(error: Tensor, share: Tensor) -> Tensor:
    return (error.square() * share).sum((0, 2))


def _bias(pixels: Pixels) -> Tensor:
    # ‖1/n_c Σ q_i δ_i‖²: the exact gradient of l_c with respect to the last layer's bias.
    sums = pixels.sum_over_errors(_class_products, *pixels.labels_and_weight())
    return class_means(sums, pixels.n.unsqueeze(1)).square().sum(1)


def _loss(pixels: Pixels) -> Tensor:
    # g_c = 1/n_c Σ q_i ℓ_i: class weighting by loss, in the place of a squared norm.
    return class_means(pixels.class_sum(scaled(pixels.loss, pixels.weight)), pixels.n)


def _last_layer_weight(pixels: Pixels) -> Tensor:
    # ‖1/n_c Σ q_i δ_i f_iᵀ‖_F²: the exact gradient of l_c with respect to the last layer's weight matrix.
    if pixels.features is None:
        raise ValueError(
            "gradient='last_layer_weight' needs features=, what enters the last layer, (N, D, *)."
        )
    features = torch.where(pixels.keep.unsqueeze(1), pixels.features, 0)
    sums = pixels.sum_over_errors(_class_products, *pixels.labels_and_weight(), features)
    return class_means(sums.flatten(1), pixels.n.unsqueeze(1)).square().sum(1)


def _class_products(
    error: Tensor, target: Tensor, weight: Tensor | None, features: Tensor | None = None
) -> Tensor:
    """Σ q_i δ_i over each class's pixels, (C, C), or with features Σ q_i δ_i f_iᵀ, (C, C, D).

    A product with a class's pixels selected rather than a scatter: its order of summation is fixed.
    """
    error = scaled(error, weight)
    products = []
    with torch.autocast(error.device.type, enabled=False):
        for c in range(error.shape[1]):
            own = torch.where(target == c, error, 0)
            products.append(own.sum((0, 2)) if features is None else (own @ features.mT).sum(0))
    return torch.stack(products)


_READINGS = {
    "pixel_mean": _pixel_mean,
    "class_logits": _class_logits,
    "official": _official,
    "bias": _bias,
    "loss": _loss,
    "last_layer_weight": _last_layer_weight,
}
