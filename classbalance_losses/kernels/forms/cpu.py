r"""The forms in compiled loops, float32: values, and slopes :math:`u_k = \partial \varphi / \partial \log p_k`.

Those of the label's own probability, cross-entropy and focal, and smoothing are functions of ℓ, and of a sum that is
linear in the logits. The others, from ``DUAL_CROSS_ENTROPY`` on, add up a term of each class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classbalance_losses.kernels.cpu.math import (
    compiled,
    exp,
    exp_or_zero,
    expm1,
    log1p,
    log_difference,
    logarithm,
)
from classbalance_losses.kernels.cpu.memory import address
from classbalance_losses.kernels.forms import reference

CROSS_ENTROPY, FOCAL, SMOOTHED, DUAL_CROSS_ENTROPY, DUAL_FOCAL = range(5)

_CODES = {
    reference.CrossEntropy: CROSS_ENTROPY,
    reference.Focal: FOCAL,
    reference.Smoothed: SMOOTHED,
    reference.DualCrossEntropy: DUAL_CROSS_ENTROPY,
    reference.DualFocal: DUAL_FOCAL,
}
_NUMBERS = {
    CROSS_ENTROPY: (),
    FOCAL: ("gamma",),
    SMOOTHED: ("smoothing",),
    DUAL_CROSS_ENTROPY: ("alpha", "beta"),
    DUAL_FOCAL: ("alpha", "beta", "gamma", "rho"),
}
# What a loop gets: the code, the address of w (C,), and numbers.
FORM = np.dtype(
    [
        *((name, np.int64) for name in ("code", "weight")),
        *((name, np.float32) for name in ("smoothing", "alpha", "beta", "gamma", "rho", "log_alpha")),
    ],
    align=True,
)

_ZERO, _ONE = np.float32(0), np.float32(1)
_HALF = np.float32(-0.5)
_HOPELESS = np.float32(reference.HOPELESS)


def parameters(form: reference.Form) -> tuple[int, list[float], Tensor | None]:
    """Return what an operator takes in the place of a form: its code, its numbers and its vector."""
    if isinstance(form, reference.Smoothed):
        return SMOOTHED, [form.label_smoothing], form.weight.contiguous()
    code = _CODES[type(form)]
    return code, [] if code == CROSS_ENTROPY else list(form), None


def form_of(code: int, numbers: Sequence[float], weight: Tensor | None) -> reference.Form:
    """Return the form that `parameters` was given."""
    if weight is not None:
        return reference.Smoothed(*numbers, weight)
    return {code: form for form, code in _CODES.items()}[code](*numbers)


def fill(form: Any, code: int, numbers: Sequence[float], weight: Tensor | None, classes: int) -> None:
    """Write what the loops get: a ``FORM``; the caller keeps the vector alive."""
    form["code"] = code
    for name, number in zip(_NUMBERS[code], numbers, strict=True):
        form[name] = number
    if code == DUAL_CROSS_ENTROPY:
        form["log_alpha"] = math.log(numbers[0])
    if weight is not None:
        is_laid_out = weight.is_contiguous()
        form["weight"] = address("weight", weight, torch.float32, (classes,), is_laid_out=is_laid_out)


@compiled
def focal_value(loss: Any, gamma: Any) -> Any:
    """Return (1 - e^-ℓ)^γ ℓ."""
    modulated = exp(gamma * logarithm(-expm1(-loss))) * loss
    return _ZERO if loss <= _ZERO else (loss if loss > _HOPELESS else modulated)


@compiled
def focal_slope(loss: Any, gamma: Any) -> Any:
    """Return its derivative in ℓ."""
    missed = -expm1(-loss)
    modulated = exp(gamma * logarithm(missed)) * (_ONE + gamma * (loss / missed) * (_ONE - missed))
    return _ZERO if loss <= _ZERO else (_ONE if loss > _HOPELESS else modulated)


@compiled
def dual_cross_entropy_term(log_prob: Any, log_rest: Any, form: Any) -> Any:
    """Return log(1 + p / α) of a class that is not the label."""
    return log1p(exp(log_prob) / form.alpha)


@compiled
def dual_cross_entropy_value(loss: Any, total: Any, classes: int, own: Any, log_rest: Any, form: Any) -> Any:
    """Return φ from ℓ and the sum of the terms."""
    return loss + form.beta * (total + np.float32(classes - 1) * form.log_alpha)


@compiled
def dual_cross_entropy_slope(
    log_prob: Any, is_own: bool, own: Any, log_rest: Any, given: Any, form: Any
) -> Any:
    """Return u of a class."""
    prob = exp_or_zero(log_prob)
    return own if is_own else form.beta * prob / (form.alpha + prob)


@compiled
def dual_focal_term(log_prob: Any, log_rest: Any, form: Any) -> Any:
    """Return -β log(ρ - p) + α p^γ of a class that is not the label; ``log_rest`` is log(1 - p) of a sure
    one, whose p is 3/4 or more, and 0 without one.
    """
    prob = exp(log_prob)
    room = log_difference(form.rho, prob)
    room = log_rest if _is_sure(log_prob, log_rest) & (form.rho == _ONE) else room
    room = _ZERO if form.beta == _ZERO else form.beta * room  # the logarithm may be infinite
    return form.alpha * _power(log_prob, form.gamma) - room


@compiled
def dual_focal_value(loss: Any, total: Any, classes: int, own: Any, log_rest: Any, form: Any) -> Any:
    """Return φ from ℓ, the sum of the terms and log p of the label."""
    return loss + total + form.alpha * _power(_log_missed(own, log_rest), form.gamma)


@compiled
def dual_focal_slope(log_prob: Any, is_own: bool, own: Any, log_rest: Any, given: Any, form: Any) -> Any:
    """Return u of a class. ``own`` is the label's, and ``given`` what a sure class gives to the others.

    Of a sure class m, 1 - p_m is the sum of the others, and its slope is given to them: with their shares
    q_k = p_k / (1 - p_m), d log(1 - p_m) = Σ_{k≠m} q_k d log p_k. As Σ_k p_k d log p_k = 0, that changes no gradient,
    and it spares the difference of two large numbers. Where the others are all 0, they have no share.
    """
    is_sure, prob = _is_sure(log_prob, log_rest), exp_or_zero(log_prob)
    room = _ZERO if is_sure & (form.rho == _ONE) else prob / (form.rho - prob)
    other = form.beta * room + form.alpha * form.gamma * _power(log_prob, form.gamma)
    share = _ZERO if is_sure else exp_or_zero(log_prob - log_rest)
    return (own if is_own else other) + share * given


@compiled
def dual_focal_own(own: Any, log_rest: Any, form: Any) -> Any:
    """Return u of the label, from its log p, without what it gives."""
    steep = exp(own + (form.gamma - _ONE) * _log_missed(own, log_rest))
    return -_ONE if _is_sure(own, log_rest) else -form.alpha * form.gamma * steep - _ONE


@compiled
def dual_focal_given(own: Any, log_rest: Any, form: Any) -> Any:
    """Return what a sure class gives to the others, and 0 where none is sure."""
    given = form.alpha * form.gamma * _power(log_rest, form.gamma)
    mistake = -form.beta if (log_rest < -_ONE) & (form.rho == _ONE) else _ZERO
    return given if _is_sure(own, log_rest) else mistake


@compiled
def _is_sure(log_prob: Any, log_rest: Any) -> Any:
    """Whether a class is the sure one: if a pixel has one, log(1 - p) of it is given, and else 0."""
    return (log_rest < -_ONE) & (log_prob > _HALF)


@compiled
def _log_missed(own: Any, log_rest: Any) -> Any:
    """Return log(1 - p) of the label from its log p."""
    return log_rest if _is_sure(own, log_rest) else log_difference(_ONE, exp(own))


@compiled
def _power(log_value: Any, exponent: Any) -> Any:
    """Return x^γ from log x; for γ = 0 it is 1 of any x, 0 included."""
    return _ONE if exponent == _ZERO else exp_or_zero(exponent * log_value)
