r"""GBW's per-class gradient norms in closed form: no backward pass is called.

With :math:`e_c` one-hot, :math:`\delta_i = p_i - e_{y_i}` is the gradient of the cross-entropy of pixel i
with respect to its logits, and everything here is a sum of it or of its square over a class's pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from classbalance_losses._distributed import all_reduce_sum
from classbalance_losses.kernels.factors import class_rows, indices, scaled
from classbalance_losses.kernels.simplex import class_means
from classbalance_losses.ops.batch import Batch
from classbalance_losses.ops.precision import without_autocast

OF_SQUARED_ERRORS = ("pixel_mean", "class_logits")
READINGS = ("pixel_mean", "class_logits", "official", "bias", "loss", "last_layer_weight")


class Gradients(NamedTuple):
    """What every reading starts from."""

    batch: Batch
    squared: Tensor | None  # Σ ‖q δ‖² (C,) of all ranks, for the readings that need no more than it
    features: Tensor | None  # (N, D, *): what enters the last layer
    n: Tensor  # n_c of all ranks, (C,), int64

    def joined(self, table: Tensor) -> Tensor:
        """Return the sum of a table over all ranks, a constant."""
        return all_reduce_sum(table.detach(), self.batch.process_group)

    def weight(self) -> Tensor | None:
        """Return q as a constant: it may be learned, by the loss alone."""
        weight = self.batch.entry_weight
        return None if weight is None else weight.detach()

    def error_sums(self, *, squared: bool) -> Tensor:
        r"""Return :math:`\sum_{y_i = a} q_i \delta_{ib}`, or of :math:`\delta_{ib}^2`, (C, C), of all ranks."""
        return self.batch.error_sums(self.weight(), squared=squared)


def gather(batch: Batch, reading: str, features: Tensor | None) -> Gradients:
    """Return what the reading needs, as constants."""
    if reading not in OF_SQUARED_ERRORS:
        return Gradients(batch, None, features, batch.number())
    number, squared = batch.squared_sums()
    return Gradients(batch, squared, features, number)


def squared_norms(gradients: Gradients, reading: str) -> Tensor:
    """Return g (C,) in the loss's dtype for one of ``READINGS``; 0 for an absent class in all but "official"."""
    return _READINGS[reading](gradients)


def _pixel_mean(gradients: Gradients) -> Tensor:
    # g_c = 1/n_c Σ ‖q_i δ_i‖²
    if gradients.squared is None:
        raise ValueError("this reading is of squared errors, which were not gathered")
    return class_means(gradients.squared, gradients.n)


def _class_logits(gradients: Gradients) -> Tensor:
    # ‖∇_z l_c‖² of the class mean l_c: each pixel's gradient carries 1/n_c, so the sum of squares 1/n_c².
    return class_means(_pixel_mean(gradients), gradients.n)


def _official(gradients: Gradients) -> Tensor:
    # The released code's norm of logit channel c, all pixels' included: Σ_i δ_ic² / (n_{y_i} + 1)².
    sums = gradients.error_sums(squared=True)
    return (sums * (gradients.n + 1).to(sums.dtype).unsqueeze(1) ** -2).sum(0)


def _bias(gradients: Gradients) -> Tensor:
    # ‖1/n_c Σ q_i δ_i‖²: the exact gradient of l_c with respect to the last layer's bias.
    return class_means(gradients.error_sums(squared=False), gradients.n.unsqueeze(1)).square().sum(1)


def _loss(gradients: Gradients) -> Tensor:
    # g_c = 1/n_c Σ q_i ℓ_i: class weighting by loss, in the place of a squared norm.
    batch = gradients.batch
    sums = batch.backend.class_sums(
        batch.classes, batch.cross_entropy().detach(), None, gradients.weight()
    ).value
    assert sums is not None
    return class_means(gradients.joined(sums[0]), gradients.n)


def _last_layer_weight(gradients: Gradients) -> Tensor:
    # ‖1/n_c Σ q_i δ_i f_iᵀ‖_F²: the exact gradient of l_c with respect to the last layer's weight matrix.
    if gradients.features is None:
        raise ValueError(
            "gradient='last_layer_weight' needs features=, what enters the last layer, (N, D, *)."
        )
    batch, features = gradients.batch, gradients.features
    prob = batch.probability().detach()
    keep = indices(batch.labels)[1].unsqueeze(1)
    products = []
    for group in range(batch.groups):  # of a label of many, which has rows of its own
        rows = slice(group, None, batch.groups)
        clean = class_rows(torch.where(keep[rows], features, 0))
        of_class = [batch.share(c, gradients.weight())[rows] for c in range(prob.shape[1])]
        products += [_product(prob[rows], c, share, clean) for c, share in enumerate(of_class)]
    joined = gradients.joined(torch.stack(products))
    return class_means(joined.flatten(1), gradients.n.unsqueeze(1)).square().sum(1)


def _product(prob: Tensor, c: int, share: Tensor, features: Tensor) -> Tensor:
    """Return Σ q_i δ_i f_iᵀ over a class's pixels, (C, D).

    A product with a class's pixels selected rather than a scatter: its order of summation is fixed.
    """
    one = torch.arange(prob.shape[1], dtype=torch.int64, device=prob.device) == c
    error = scaled(prob - one.view(-1, *[1] * (prob.ndim - 2)).to(prob.dtype), share.unsqueeze(1))
    with without_autocast(prob):
        return (class_rows(error) @ features.mT).sum(0)


_READINGS = {
    "pixel_mean": _pixel_mean,
    "class_logits": _class_logits,
    "official": _official,
    "bias": _bias,
    "loss": _loss,
    "last_layer_weight": _last_layer_weight,
}
