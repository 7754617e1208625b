"""GBW's class weights as a projection on the scaled simplex, in plain PyTorch, without synchronising."""

from __future__ import annotations

import torch
from torch import Tensor


def project(
    squared: Tensor, number: Tensor, regularization: float, *, present: bool, by_number: bool
) -> Tensor:
    r"""Return v (C,), the projection of :math:`g / (2 \lambda)`, for g, sums over the classes' numbers of pixels.

    Args:
        squared: each class's :math:`\sum \lVert q \delta \rVert^2` (C,).
        number: n_c (C,), int64.
        regularization: λ.
        present: whether classes without pixels take no part, and have the weight 1; else their norm is 0.
        by_number: whether g is divided by n_c once more.
    """
    norms = class_means(squared, number)
    norms = class_means(norms, number) if by_number else norms
    return weights_from_norms(norms, number > 0, regularization, present=present)


def weights_from_norms(norms: Tensor, is_present: Tensor, regularization: float, *, present: bool) -> Tensor:
    """Return the same from g (C,), and which classes have pixels."""
    point = free_weights(norms, regularization)
    if not present:
        return project_to_simplex(point, float(point.shape[0]))
    return torch.where(is_present, project_to_simplex(point, is_present.sum(), is_present), 1)


def class_means(sums: Tensor, count: Tensor) -> Tensor:
    """Return ``sums / count``, and 0 for a class without pixels; counts of shares may be below 1."""
    return torch.where(count > 0, sums / torch.where(count > 0, count, 1), 0)


def project_to_simplex(point: Tensor, total: Tensor | float, mask: Tensor | None = None) -> Tensor:
    r"""Return the nearest v to ``point`` (C,) with v >= 0 and sum v = ``total``, in its dtype.

    With ``mask`` (C,) only the masked entries take part, and the others are 0. The answer is
    :math:`v_c = \max(0, u_c - \tau)`; with u sorted in descending order,
    :math:`\tau = (\sum_{j \le r} u_{(j)} - s) / r` for the largest r with
    :math:`u_{(r)} > (\sum_{j \le r} u_{(j)} - s) / r`
    (Held, Wolfe, Crowder 1974; Duchi et al., ICML 2008). O(C log C), on the device, without synchronising.
    """
    u = point if mask is None else torch.where(mask, point, -torch.inf)
    # The projection does not change when all of u moves; with its largest entry at 0 nothing cancels.
    u = u - u.max()
    ordered = u.sort(descending=True).values
    rank = torch.arange(1, u.shape[0] + 1, dtype=torch.int64, device=u.device)
    # The sums of the first r; cumsum of floats is what CUDA refuses where algorithms have to be deterministic.
    sums = torch.where(rank.unsqueeze(1) >= rank, ordered, 0).sum(1)
    tau = (sums - total) / rank
    support = (ordered > tau).sum(0, keepdim=True)
    # The support is empty only where u is NaN (nothing is masked in, or the logits were): NaN is then the answer.
    return (u - tau.gather(0, (support - 1).clamp(min=0))).clamp(min=0)


def free_weights(squared_norms: Tensor, regularization: float) -> Tensor:
    r"""Return :math:`g / (2 \lambda)`, which the constraints project.

    An infinite norm (of the reading "loss", where a label's logit is -inf) becomes one so large that its class has
    all the weight, or shares it with those like it: ∞ - ∞ would be NaN.
    """
    large = torch.finfo(squared_norms.dtype).max ** 0.5
    return squared_norms.clamp(max=large) / (2 * regularization)
