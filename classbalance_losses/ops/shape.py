"""Stage 2: functions of a pixel's loss, or of its probabilities, alone."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from classbalance_losses._dispatch import backend_for
from classbalance_losses.kernels import blocked_shape
from classbalance_losses.kernels.blocked_forms import SURE
from classbalance_losses.kernels.blocked_shape import HOPELESS

_BLOCKED_FROM = 1 << 14


def focal_modulated(loss: Tensor, gamma: float) -> Tensor:
    r"""Return :math:`(1 - e^{-\ell})^\gamma \ell`, the focal loss as a function of the cross-entropy ℓ ≥ 0."""
    if gamma == 0:
        return loss
    if backend_for(loss, blocked_from=_BLOCKED_FROM) == "blocked":
        return blocked_shape.focal(loss, gamma, partial(_modulated, gamma=gamma))
    return _modulated(loss, gamma)


def _modulated(loss: Tensor, gamma: float) -> Tensor:
    # At ℓ = 0 the derivative of the power alone is infinite for γ < 1; the product's is 0, and is what
    # selecting (inside and outside) gives. Asked this way round, a NaN stays a NaN.
    # A hopeless ℓ, which may be infinite, is itself: its e^-ℓ is below all that rounding sees.
    perfect, hopeless = loss <= 0, loss > HOPELESS
    safe = torch.where(perfect | hopeless, 1, loss)
    modulated = (-torch.expm1(-safe)) ** gamma * safe
    return torch.where(perfect, 0, torch.where(hopeless, loss, modulated))


def power(log_value: Tensor, exponent: float) -> Tensor:
    r"""Return :math:`x^\gamma` from :math:`\log x`; for γ = 0 it is 1 of any x, 0 included."""
    return torch.ones_like(log_value) if exponent == 0 else torch.exp(exponent * log_value)


def log_complement(log_prob: Tensor) -> Tensor:
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
