r"""GBW's per-class gradient norms in closed form: no backward pass is called.

With :math:`e_c` one-hot, :math:`\delta_i = p_i - e_{y_i}` is the gradient of the cross-entropy of pixel i
with respect to its logits, and everything here is a sum of it or of its square over a class's pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from classbalance_losses._distributed import all_reduce_sum
from classbalance_losses.ops.counts import class_counts, class_means, class_sums, class_vector_sums
from classbalance_losses.ops.logits import Logits
from classbalance_losses.ops.pixel import (
    errors,
    pixel_cross_entropy,
    pixel_cross_entropy_and_error,
    pixel_log_softmax,
)
from classbalance_losses.ops.weights import kept_weight, per_pixel, scaled

if TYPE_CHECKING:
    from classbalance_losses._distributed import ProcessGroup

_OF_SQUARED_ERRORS = ("pixel_mean", "class_logits")
READINGS = ("pixel_mean", "class_logits", "official", "bias", "loss", "last_layer_weight")


class Pixels(NamedTuple):
    """What every reading starts from."""

    logits: Logits  # detached
    loss: Tensor  # ℓ (N, *), detached
    squared_error: Tensor | None  # ‖δ‖² (N, *), for the readings that need no more than it
    target: Tensor  # (N, *), int64
    keep: Tensor  # (N, *), bool
    weight: Tensor | None  # q, (N, *), or None for 1
    features: Tensor | None  # (N, D, *): what enters the last layer
    n: Tensor  # n_c over all ranks, (C,), int64
    process_group: ProcessGroup

    @property
    def num_classes(self) -> int:
        """C."""
        return self.logits.num_classes

    def class_sum(self, value: Tensor) -> Tensor:
        """Sum ``value`` (N, *) over the pixels of each class, on all ranks: (C,)."""
        return all_reduce_sum(class_sums(value, self.target, self.keep, self.num_classes), self.process_group)

    def errors(self) -> Tensor:
        """δ (N, C, *), 0 where not kept."""
        return errors(pixel_log_softmax(self.logits.full_size(), self.keep), self.target, self.keep)


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
    count = all_reduce_sum(class_counts(target, keep, logits.num_classes), process_group)
    weight = kept_weight(pixel_weight, keep, loss.dtype)
    if features is not None:  # resized like the logits: interpolation and the last layer commute
        features = Logits(features.detach().to(loss.dtype), logits.resize).full_size()
    return loss, Pixels(
        logits.detach(), loss.detach(), squared_error, target, keep, weight, features, count, process_group
    )


def squared_norms(pixels: Pixels, reading: str) -> Tensor:
    """Return g (C,) in float64 for one of ``READINGS``; 0 for an absent class in all but "official"."""
    return _READINGS[reading](pixels)


def _pixel_mean(pixels: Pixels) -> Tensor:
    # g_c = 1/n_c Σ ‖q_i δ_i‖²
    if pixels.squared_error is None:
        raise ValueError("this reading is of squared errors, which were not gathered")
    norms = scaled(pixels.squared_error, pixels.weight, pixels.weight)
    return class_means(pixels.class_sum(norms), pixels.n)


def _class_logits(pixels: Pixels) -> Tensor:
    # ‖∇_z l_c‖² of the class mean l_c: each pixel's gradient carries 1/n_c, so the sum of squares 1/n_c².
    return class_means(_pixel_mean(pixels), pixels.n)


def _official(pixels: Pixels) -> Tensor:
    # The released code's norm of logit channel c, all pixels' included: Σ_i δ_ic² / (n_{y_i} + 1)².
    share = per_pixel((pixels.n + 1).double() ** -2, pixels.target, pixels.keep, torch.float64)
    channels = (pixels.errors().double().square() * share.unsqueeze(1)).transpose(0, 1).flatten(1)
    return all_reduce_sum(channels.sum(1), pixels.process_group)


def _bias(pixels: Pixels) -> Tensor:
    # ‖1/n_c Σ q_i δ_i‖²: the exact gradient of l_c with respect to the last layer's bias.
    error = scaled(_rows(pixels.errors()), _column(pixels.weight))
    sums = class_vector_sums(error, pixels.target.flatten(), pixels.keep.flatten(), pixels.num_classes)
    sums = all_reduce_sum(sums.double(), pixels.process_group)
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
    error = scaled(_rows(pixels.errors()), _column(pixels.weight))
    kept = pixels.keep.unsqueeze(1)
    features = _rows(torch.where(kept, pixels.features, 0))
    target = pixels.target.flatten()
    products = []
    with torch.autocast(error.device.type, enabled=False):
        for c in range(pixels.logits.input.shape[1]):  # torch 2.6 cannot trace a property here
            own = torch.where((target == c).unsqueeze(1), error, 0)
            products.append(own.T @ features)
    sums = all_reduce_sum(torch.stack(products).double(), pixels.process_group).flatten(1)
    return class_means(sums, pixels.n.unsqueeze(1)).square().sum(1)


def _rows(values: Tensor) -> Tensor:
    """(N, C, *) → (P, C)."""
    return values.movedim(1, -1).flatten(0, -2)


def _column(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.flatten().unsqueeze(1)


_READINGS = {
    "pixel_mean": _pixel_mean,
    "class_logits": _class_logits,
    "official": _official,
    "bias": _bias,
    "loss": _loss,
    "last_layer_weight": _last_layer_weight,
}
