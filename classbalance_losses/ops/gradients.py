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
from classbalance_losses.ops.pixel import pick_class
from classbalance_losses.ops.weights import kept_weight, per_pixel, scaled

if TYPE_CHECKING:
    from classbalance_losses._distributed import ProcessGroup

READINGS = ("pixel_mean", "class_logits", "official", "bias", "loss", "last_layer_weight")


class Pixels(NamedTuple):
    """What every reading starts from."""

    log_prob: Tensor  # (N, C, *), detached
    target: Tensor  # (N, *), int64
    keep: Tensor  # (N, *), bool
    weight: Tensor | None  # q, (N, *), or None for 1
    features: Tensor | None  # (N, D, *): what enters the last layer
    n: Tensor  # n_c over all ranks, (C,), int64
    process_group: ProcessGroup

    @property
    def num_classes(self) -> int:
        """C."""
        return self.log_prob.shape[1]

    def class_sum(self, value: Tensor) -> Tensor:
        """Sum ``value`` (N, *) over the pixels of each class, on all ranks: (C,)."""
        return all_reduce_sum(class_sums(value, self.target, self.keep, self.num_classes), self.process_group)

    def errors(self) -> Tensor:
        """δ (N, C, *), 0 where not kept."""
        index = torch.where(self.keep, self.target, 0).unsqueeze(1)
        probability = self.log_prob.exp()
        error = probability.scatter_add(1, index, torch.full_like(probability[:, :1], -1))
        return torch.where(self.keep.unsqueeze(1), error, 0)


def gather_pixels(
    log_prob: Tensor,
    target: Tensor,
    keep: Tensor,
    *,
    pixel_weight: Tensor | None,
    features: Tensor | None,
    process_group: ProcessGroup,
) -> Pixels:
    """Collect what the readings need, as constants."""
    count = all_reduce_sum(class_counts(target, keep, log_prob.shape[1]), process_group)
    weight = kept_weight(pixel_weight, keep, log_prob.dtype)
    features = None if features is None else features.detach().to(log_prob.dtype)
    return Pixels(log_prob.detach(), target, keep, weight, features, count, process_group)


def squared_norms(pixels: Pixels, reading: str) -> Tensor:
    """Return g (C,) in float64 for one of ``READINGS``; 0 for an absent class in all but "official"."""
    return _READINGS[reading](pixels)


def _pixel_mean(pixels: Pixels) -> Tensor:
    # g_c = 1/n_c Σ ‖q_i δ_i‖²
    norms = scaled(pixels.errors().square().sum(1), pixels.weight, pixels.weight)
    return class_means(pixels.class_sum(norms), pixels.n)


def _class_logits(pixels: Pixels) -> Tensor:
    # ‖∇_z l_c‖² of the class mean l_c: each pixel's gradient carries 1/n_c, so the sum of squares 1/n_c².
    return class_means(_pixel_mean(pixels), pixels.n)


def _official(pixels: Pixels) -> Tensor:
    # The released code's norm of logit channel c, all pixels' included: Σ_i δ_ic² / (n_{y_i} + 1)².
    share = per_pixel((pixels.n + 1).double() ** -2, pixels.target, pixels.keep)
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
    loss = -pick_class(pixels.log_prob, pixels.target, pixels.keep)
    return class_means(pixels.class_sum(scaled(loss, pixels.weight)), pixels.n)


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
        for c in range(pixels.log_prob.shape[1]):  # torch 2.6 cannot trace a property here
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
