r"""The forms in plain PyTorch: what they are. Their parameters are what the other backends get.

A form φ is a function of a pixel's log-probabilities :math:`\log p_k` and its label y. Its slope
:math:`u_k = \partial \varphi / \partial \log p_k`, which autograd finds here, gives the gradient in the logits,
:math:`u_k - p_k \sum_j u_j`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from classbalance_losses.kernels.call import accumulation_dtype
from classbalance_losses.kernels.plain import can_read_values

HOPELESS = 104.0  # a cross-entropy whose probability is 0 in float32, and far below rounding in float64
_LARGE = 40.0  # a number beside whose exponential 1 is lost, in float64, too
SURE = math.log(0.75)  # of a pixel's classes, one at most is as probable


class CrossEntropy(NamedTuple):
    r""":math:`\ell = -\log p_y`.

    ``ranked``: two pixels with the same logits for other classes have the same ℓ to the last bit, and tie. All backends
    but the reference, which is quicker without, have it so.
    """

    ranked: bool = False

    def value(self, input: Tensor, target: Tensor, keep: Tensor) -> Tensor:
        r"""Return ℓ (N, *) of logits (N, C, *), 0 where not kept, as :math:`\log \sum_k e^{x_k - m} - (x_y - m)`.

        m is the largest logit. log1p is given what exceeds 1 in the sum: where y has the largest logit that is the
        others' part, however small. The sum itself would be rounded to 1, and ℓ to 0, from a margin of 17 on.
        """
        if input.shape[1] == 2:
            return _of_two(input, target, keep)
        index = torch.where(keep, target, 0).unsqueeze(1)
        x = torch.where(keep.unsqueeze(1), input, 0).to(accumulation_dtype(input.dtype))
        shifted = x - x.detach().amax(1, keepdim=True)  # the loss does not depend on m
        own = shifted.gather(1, index)
        others = shifted.exp().scatter(1, index, 0).sum(1, keepdim=True)
        return torch.where(keep, (torch.log1p(others + torch.expm1(own)) - own).squeeze(1), 0)


class Focal(NamedTuple):
    r""":math:`(1 - p_y)^\gamma\, \ell` for γ > 0."""

    gamma: float

    def value(self, input: Tensor, target: Tensor, keep: Tensor) -> Tensor:
        """Return φ (N, *), 0 where not kept."""
        return self.of_loss(CrossEntropy().value(input, target, keep))

    def of_loss(self, loss: Tensor) -> Tensor:
        r"""Return :math:`(1 - e^{-\ell})^\gamma \ell`."""
        # At ℓ = 0 the derivative of the power alone is infinite for γ < 1, so the power is that of a tiny ℓ; at a
        # hopeless ℓ, which may be infinite, it is 1. A NaN stays a NaN.
        missed = -torch.expm1(-loss.clamp(torch.finfo(loss.dtype).tiny, HOPELESS))
        return missed**self.gamma * loss


class Smoothed(NamedTuple):
    r"""Label smoothing: :math:`(1 - \varepsilon) w_y \ell + \frac{\varepsilon}{C} \sum_c w_c (-\log p_c)`.

    A class of weight 0 adds nothing, whatever its probability.
    """

    label_smoothing: float
    weight: Tensor  # w (C,), in the loss's dtype

    def value(self, input: Tensor, target: Tensor, keep: Tensor) -> Tensor:
        """Return φ (N, *), 0 where not kept."""
        input = input.to(accumulation_dtype(input.dtype))  # half gradients of two terms would each be rounded
        loss = CrossEntropy().value(input, target, keep)
        own = torch.where(keep, self.weight[torch.where(keep, target, 0)], 0) * (1 - self.label_smoothing)
        surprise = -_log_prob(input, keep)
        weight = self.weight.view(-1, *[1] * (input.ndim - 2))
        weighted = torch.where((weight == 0) & (surprise == torch.inf), 0, surprise) * weight
        spread = torch.where(keep, weighted.mean(1), 0)
        loss = torch.where((own == 0) & (loss == torch.inf), 0, loss)
        return own * loss + self.label_smoothing * spread


class Adjusted(NamedTuple):
    """Cross-entropy of logits plus constants: of a sum's other terms, which see the logits themselves, a form."""

    bias: Tensor  # (C,), in the loss's dtype

    def value(self, input: Tensor, target: Tensor, keep: Tensor) -> Tensor:
        """Return φ (N, *), 0 where not kept."""
        bias = self.bias.view(-1, *[1] * (input.ndim - 2))
        return CrossEntropy().value(input.to(bias.dtype) + bias, target, keep)


class DualCrossEntropy(NamedTuple):
    r""":math:`\ell + \beta \sum_{j \ne y} \log(\alpha + p_j)`."""

    alpha: float
    beta: float

    def value(self, input: Tensor, target: Tensor, keep: Tensor) -> Tensor:
        """Return φ (N, *), 0 where not kept."""
        log_prob = _log_prob(input, keep)
        log_shifted = math.log(self.alpha) + torch.log1p(log_prob.exp() / self.alpha)
        return self.beta * _sum_of_others(log_shifted, target, keep) - _own(log_prob, target, keep)


class DualFocal(NamedTuple):
    r""":math:`\ell - \beta \sum_{j \ne y} \log(\rho - p_j) + \alpha [(1 - p_y)^\gamma + \sum_{j \ne y} p_j^\gamma]`."""

    alpha: float
    beta: float
    gamma: float
    rho: float

    def value(self, input: Tensor, target: Tensor, keep: Tensor) -> Tensor:
        """Return φ (N, *), 0 where not kept."""
        # log(1 - p) by complement and powers as exp(γ log ·): finite, with finite gradients, at saturation.
        log_prob = _log_prob(input, keep)
        log_rest = _log_complement(log_prob)
        log_room = log_rest if self.rho == 1 else torch.log(self.rho - log_prob.exp())
        loss = -_own(log_prob, target, keep)
        if self.beta:  # its sum may be infinite
            loss = loss - self.beta * _sum_of_others(log_room, target, keep)
        missed = torch.where(keep, _power(_own(log_rest, target, keep), self.gamma), 0)
        spilt = _sum_of_others(_power(log_prob, self.gamma), target, keep)
        return loss + self.alpha * (missed + spilt)


Form = (
    CrossEntropy | Focal | Smoothed | DualCrossEntropy | DualFocal | Adjusted
)  # of which the CPU lacks the last


class Mixed(NamedTuple):
    r"""Label smoothing of any form: :math:`(1 - \varepsilon) \varphi_y + \frac{\varepsilon}{C} \sum_c \varphi_c`."""

    form: Form
    label_smoothing: float

    def value(self, input: Tensor, target: Tensor, keep: Tensor) -> Tensor:
        """Return φ (N, *), 0 where not kept."""
        return _own(of_all_classes(self, input, keep), target, keep)

    def of_all(self, input: Tensor, keep: Tensor) -> Tensor:
        """Return φ of each class as if it were the label (N, C, *)."""
        input = input.to(accumulation_dtype(input.dtype))  # half gradients of two terms would each be rounded
        values = of_all_classes(self.form, input, keep)
        return (1 - self.label_smoothing) * values + self.label_smoothing * values.mean(1, keepdim=True)


AnyForm = Form | Mixed  # the reference alone has the second


def smoothed(form: Form, label_smoothing: float) -> AnyForm:
    """Return a form with its label smoothing, if there is any."""
    return Mixed(form, label_smoothing) if label_smoothing else form


def of_all_classes(form: AnyForm, input: Tensor, keep: Tensor) -> Tensor:
    """Return φ of each class as if it were the label (N, C, *), 0 where not kept."""
    if isinstance(form, Mixed):
        return form.of_all(input, keep)
    if isinstance(form, (CrossEntropy, Focal)):
        loss = torch.where(keep.unsqueeze(1), -_log_prob(input, keep), 0)
        return form.of_loss(loss) if isinstance(form, Focal) else loss
    target = torch.zeros_like(keep, dtype=torch.int64)
    return torch.stack([form.value(input, target + c, keep) for c in range(input.shape[1])], 1)


def _of_two(input: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    r"""Return ℓ (N, *) of logits of two classes as :math:`\log(1 + e^u)`, u the wrong one less the label's.

    It is NaN where the larger one is NaN or infinite.
    """
    zero, one = input.to(accumulation_dtype(input.dtype)).unbind(1)
    margin = one - zero
    if not (can_read_values(margin) and margin.detach().sum().isfinite()):
        # torch.maximum has NaNs of other bits, which would not tie.
        largest = torch.where(one > zero, one, zero).detach()
        margin = margin + (largest - largest)
    margin = torch.where(target == 1, -margin, margin)
    return F.softplus(torch.where(keep, margin, -torch.inf), threshold=_LARGE)


def _log_prob(input: Tensor, keep: Tensor) -> Tensor:
    """Return log-probabilities (N, C, *); logits that do not count may be NaN or inf, and are replaced."""
    return F.log_softmax(
        torch.where(keep.unsqueeze(1), input, 0), dim=1, dtype=accumulation_dtype(input.dtype)
    )


def _own(values: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    """Return ``values[n, target, ...]`` (N, *) out of (N, C, *), and 0 where not kept."""
    index = torch.where(keep, target, 0).unsqueeze(1)
    return torch.where(keep, values.gather(1, index).squeeze(1), 0)


def _sum_of_others(values: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    """Return the sum of (N, C, *) over the classes other than the target, (N, *), and 0 where not kept."""
    classes = torch.arange(values.shape[1], dtype=torch.int64, device=values.device)
    other = (classes.view(-1, *[1] * (values.ndim - 2)) != target.unsqueeze(1)) & keep.unsqueeze(1)
    return torch.where(other, values, 0).sum(1)


def _power(log_value: Tensor, exponent: float) -> Tensor:
    r"""Return :math:`x^\gamma` from :math:`\log x`; for γ = 0 it is 1 of any x, 0 included."""
    return torch.ones_like(log_value) if exponent == 0 else torch.exp(exponent * log_value)


def _log_complement(log_prob: Tensor) -> Tensor:
    r"""Return :math:`\log(1 - p_k)` (N, C, *) from log-probabilities, finite wherever those are finite.

    For a probability near 1, :math:`1 - p` would round to 0; there it is the sum of the others, and -inf, a constant,
    where those are all exactly 0.
    """
    is_sure = log_prob > SURE
    others = torch.where(is_sure, -torch.inf, log_prob)
    nothing = torch.isneginf(others).all(1, keepdim=True)
    others = torch.where(nothing, 0, others).logsumexp(1, keepdim=True)
    others = torch.where(nothing, -torch.inf, others)
    safe = torch.where(is_sure, -1.0, log_prob)
    return torch.where(is_sure, others, torch.log1p(-safe.exp()))
