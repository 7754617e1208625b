r"""Tversky's index of sums over classes, in plain PyTorch: what a kernel that does the same is tested against.

.. math:: T_c = \frac{I_c + s}{U_c + s}, \qquad U_c = I_c + \alpha (P_c - I_c) + \beta (n_c - I_c)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_ROUNDING = 1e-12


class Index(NamedTuple):
    """The numbers of the index, and of its loss, (1 - T)^γ."""

    alpha: float
    beta: float
    gamma: float
    smooth: float

    def left(self) -> float:
        """Return how often U has I: not at all for Dice."""
        left = 1 - self.alpha - self.beta
        return 0.0 if abs(left) < _ROUNDING else left

    def union(self, probability: Tensor, own: Tensor, number: Tensor) -> Tensor:
        """Return I + α (P - I) + β (n - I)."""
        union = torch.add(self.beta * number.to(own.dtype), probability, alpha=self.alpha)
        left = self.left()
        return torch.add(union, own, alpha=left) if left else union

    def missed(self, own: Tensor, union: Tensor) -> Tensor:
        """Return (1 - T)^γ, 0 of an empty union; the power's slope at a perfect overlap is not asked for."""
        total = union + self.smooth if self.smooth else union
        missed = (union - own) / total.clamp(min=torch.finfo(total.dtype).tiny)
        if self.gamma == 1:
            return missed
        perfect = missed <= 0  # asked this way round, a NaN stays a NaN
        return torch.where(perfect, 0, torch.where(perfect, 1, missed) ** self.gamma)


def mean_missed(
    probability: Tensor, own: Tensor, number: Tensor, weight: Tensor, index: Index, *, mean: bool = True
) -> Tensor:
    r"""Return :math:`\sum_c w_c (1 - T_c)^\gamma` of each row (R,) of sums (R, C), over :math:`\sum_c w_c` if asked."""
    missed = index.missed(own, index.union(probability, own, number))
    return total_missed(missed, weight, mean=mean)


def total_missed(missed: Tensor, weight: Tensor, *, mean: bool) -> Tensor:
    """Return the same of losses (R, C); 0 of a row without weights."""
    if mean:
        norm = weight.sum(1, keepdim=True)
        weight = weight / norm.clamp(min=torch.finfo(norm.dtype).tiny)
    return (weight * missed).sum(1)
