r"""Closed forms for a CPU of the losses that look at all probabilities: dual cross-entropy and dual focal.

Each is a function of a pixel's log-probabilities (n, C, p) and of its label (n, 1, p). So is its slope
:math:`u = \partial \ell / \partial \log p`; the gradient in the logits is :math:`u - p \sum_k u_k`. Where autograd goes
through masks and new tensors, these are a few steps in place.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from classbalance_losses.kernels.blocked_pixel import exp_

SURE = math.log(0.75)  # of a pixel's classes, one at most is as probable


class DualCrossEntropy(NamedTuple):
    r""":math:`\ell = -\log p_y + \beta \sum_{j \ne y} \log(\alpha + p_j)`."""

    alpha: float
    beta: float

    def value(self, log_prob: Tensor, label: Tensor) -> Tensor:
        """Return ℓ (n, 1, p)."""
        grown = _sum_of_others(exp_(log_prob.clone()).div_(self.alpha).log1p_(), label)
        constant = (log_prob.shape[1] - 1) * math.log(self.alpha)
        return grown.add_(constant).mul_(self.beta).sub_(log_prob.gather(1, label))

    def slope(self, log_prob: Tensor, label: Tensor) -> Tensor:
        """Return u (n, C, p)."""
        prob = exp_(log_prob.clone())
        return (prob / (prob + self.alpha)).mul_(self.beta).scatter_(1, label, -1)


class DualFocal(NamedTuple):
    r"""Dual focal, as :class:`~classbalance_losses.DualFocalLoss` has it.

    Of a nearly sure class m, :math:`1 - p_m` is the sum of the others, and its slope is given to them: with their
    shares :math:`q_k = p_k / (1 - p_m)`, :math:`d \log(1 - p_m) = \sum_{k \ne m} q_k\, d \log p_k`. As
    :math:`\sum_k p_k\, d \log p_k = 0` that changes no gradient, and it spares the difference of two large numbers.
    """

    alpha: float
    beta: float
    gamma: float
    rho: float

    def value(self, log_prob: Tensor, label: Tensor) -> Tensor:
        """Return ℓ (n, 1, p)."""
        own, unsure = log_prob.gather(1, label), _Unsure.of(log_prob)
        missed = _power(unsure.log_complement(own), self.gamma)
        # For γ = 1 the other probabilities add up to 1 - p_y.
        spilt = missed if self.gamma == 1 else _sum_of_others(_power(log_prob, self.gamma), label)
        value = (missed + spilt).mul_(self.alpha).sub_(own)
        if self.beta == 0:  # the sum may be infinite
            return value
        if self.rho == 1:
            room = _sum_of_others(unsure.prob().neg_().log1p_(), label)
            room.add_(torch.where(unsure.is_sure_mistake(own), unsure.log_sum, 0))
        else:
            room = _sum_of_others(exp_(log_prob.clone()).neg_().add_(self.rho).log_(), label)
        return value.sub_(room, alpha=self.beta)

    def slope(self, log_prob: Tensor, label: Tensor) -> Tensor:
        """Return u (n, C, p)."""
        own, unsure = log_prob.gather(1, label), _Unsure.of(log_prob)
        prob = unsure.prob() if self.rho == 1 else exp_(log_prob.clone())
        slope = (prob / (self.rho - prob)).mul_(self.beta)
        steepness = self.alpha * self.gamma
        slope.add_(_power(log_prob, self.gamma), alpha=steepness)

        is_sure, log_missed = own >= SURE, unsure.log_complement(own)
        not_sure = torch.where(is_sure, -math.inf, own + (self.gamma - 1) * log_missed)
        slope.scatter_(1, label, not_sure.exp_().mul_(-steepness).sub_(1))

        given = torch.where(is_sure, steepness * _power(log_missed, self.gamma), 0)
        if self.rho == 1:
            given.sub_(unsure.is_sure_mistake(own) * self.beta)
        return slope.addcmul_(unsure.share, given)


class _Unsure(NamedTuple):
    """The classes of a pixel but one whose probability is 3/4 or more."""

    share: Tensor  # (n, C, p): their parts of their sum, and 0 for the sure one
    log_sum: Tensor  # (n, 1, p): log(1 - p_m), or 0 up to rounding where no class is sure

    @classmethod
    def of(cls, log_prob: Tensor) -> _Unsure:
        surprise = F.threshold(log_prob.neg(), -SURE, math.inf, inplace=True)
        # Of a class at least is a power of 1 the sum, unless all of them are exactly 0.
        least = surprise.amin(1, keepdim=True).clamp_(max=torch.finfo(surprise.dtype).max)
        power = exp_(torch.sub(least, surprise, out=surprise))
        total = power.sum(1, keepdim=True)
        return cls(power.div_(total.clamp(min=1)), total.log().sub_(least))

    def prob(self) -> Tensor:
        """Return their probabilities (n, C, p)."""
        return self.share * self.log_sum.exp()

    def log_complement(self, own: Tensor) -> Tensor:
        r"""Return :math:`\log(1 - p_y)` (n, 1, p) from the label's log-probability."""
        return torch.where(own >= SURE, self.log_sum, torch.log1p(-own.exp()))

    def is_sure_mistake(self, own: Tensor) -> Tensor:
        """Return whether a class that is not the label is sure (n, 1, p)."""
        return (self.log_sum < -1) & (own < SURE)


def _power(log_value: Tensor, exponent: float) -> Tensor:
    """Return a power (n, K, p) from logarithms; the 0th is 1 of any number, 0 included."""
    return torch.ones_like(log_value) if exponent == 0 else exp_(log_value * exponent)


def _sum_of_others(values: Tensor, label: Tensor) -> Tensor:
    """Return the sum over the classes but the label's, which is overwritten."""
    return values.scatter_(1, label, 0).sum(1, keepdim=True)
