r"""The forms in compiled loops, float32: values, and slopes :math:`u_k = \partial \varphi / \partial \log p_k`.

Focal is a function of ℓ, smoothing of ℓ and a sum that is linear in the logits. The dual forms are one family,

.. math:: \ell + b \sum_{j \ne y} \log(a + s p_j) + \alpha \big[(1 - p_y)^\gamma + \sum_{j \ne y} p_j^\gamma\big],

dual cross-entropy with s = 1 and α = 0, dual focal with s = -1. Where a class m is sure, with a probability of 3/4 or
more, :math:`1 - p_m` is what the others sum to, and is given by its logarithm, ``log_rest``; where none is, that is 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from classbalance_losses.kernels.cpu.math import exp, expm1, inlined, log_difference, logarithm
from classbalance_losses.kernels.cpu.memory import address
from classbalance_losses.kernels.forms import reference

CROSS_ENTROPY, FOCAL, SMOOTHED, DUAL_CROSS_ENTROPY, DUAL_FOCAL = range(5)
NO_FORM = -1

_CODES: dict[type, int] = {
    reference.CrossEntropy: CROSS_ENTROPY,
    reference.Focal: FOCAL,
    reference.Smoothed: SMOOTHED,
    reference.DualCrossEntropy: DUAL_CROSS_ENTROPY,
    reference.DualFocal: DUAL_FOCAL,
}


class Parameters(NamedTuple):
    """What a loop gets: the code, the address of w (C,), and numbers."""

    code: int
    weight: int
    together: int  # classes, of whose a + s p the product is a float32
    smoothing: Any
    a: Any
    s: Any
    b: Any
    log_a: Any
    alpha: Any
    gamma: Any


_INTEGERS = ("code", "weight", "together")
# The same in a job.
FORM = np.dtype(
    [(name, np.int64 if name in _INTEGERS else np.float32) for name in Parameters._fields], align=True
)

_ZERO, _ONE, SQUARE = np.float32(0), np.float32(1), np.float32(2)
_LIKELY = np.float32(-0.5)  # log p of a class that is sure, or no class is
_HOPELESS = np.float32(reference.HOPELESS)
_LARGEST = 80.0  # logarithm of a product that is a float32


def parameters(form: reference.Form | None) -> tuple[int, list[float], Tensor | None]:
    """Return what an operator takes in the place of a form: its code, its numbers and its vector."""
    if form is None:
        return NO_FORM, [], None
    if isinstance(form, reference.Smoothed):
        return SMOOTHED, [form.label_smoothing], form.weight.contiguous()
    code, numbers = _CODES[type(form)], cast("Sequence[float]", form)
    return code, [] if code == CROSS_ENTROPY else list(numbers), None


def form_of(code: int, numbers: Sequence[float], weight: Tensor | None) -> reference.Form:
    """Return the form that `parameters` was given."""
    if weight is not None:
        return reference.Smoothed(numbers[0], weight)
    kinds: dict[int, Any] = {code: kind for kind, code in _CODES.items()}
    form: reference.Form = kinds[code](*numbers)
    return form


def fill(form: Any, code: int, numbers: Sequence[float], weight: Tensor | None, classes: int) -> None:
    """Write a ``FORM``; the caller keeps the vector alive."""
    form["code"] = code
    if code == FOCAL:
        form["gamma"] = numbers[0]
    elif code == SMOOTHED and weight is not None:
        form["smoothing"] = numbers[0]
        is_laid_out = weight.is_contiguous()
        form["weight"] = address("weight", weight, torch.float32, (classes,), is_laid_out=is_laid_out)
    elif code == DUAL_CROSS_ENTROPY:
        alpha, form["b"] = numbers
        form["s"], form["a"], form["log_a"], form["gamma"] = 1, alpha, math.log(alpha), 1
        # As Σ p is 1, the product of 1 + p / α is at most e^(1/α); of each factor, 1 + 1 / α.
        is_small = 1 / alpha > _LARGEST
        form["together"] = max(_LARGEST / math.log1p(1 / alpha), 1) if is_small else classes
    elif code == DUAL_FOCAL:
        form["alpha"], beta, form["gamma"], rho = numbers
        form["s"], form["a"], form["b"], form["log_a"] = -1, rho, -beta, math.log(rho)
        form["together"] = classes


@inlined
def read(form: Any) -> Parameters:
    """Return a ``FORM`` by value: it is then clear to the compiler that no loop writes to it."""
    return Parameters(
        form.code,
        form.weight,
        form.together,
        form.smoothing,
        form.a,
        form.s,
        form.b,
        form.log_a,
        form.alpha,
        form.gamma,
    )


@inlined
def faded(missed: Any, gamma: Any, is_square: bool) -> Any:
    """Return m^γ of a normal m > 0; without a logarithm where it is clear to the compiler that γ is 2."""
    return missed * missed if is_square else exp(gamma * logarithm(missed))


@inlined
def focal_value(loss: Any, gamma: Any, is_square: bool) -> Any:
    """Return (1 - e^-ℓ)^γ ℓ."""
    modulated = faded(-expm1(-loss), gamma, is_square) * loss
    return _ZERO if loss <= _ZERO else (loss if loss > _HOPELESS else modulated)


@inlined
def focal_slope(loss: Any, gamma: Any, is_square: bool) -> Any:
    """Return its derivative in ℓ."""
    missed = -expm1(-loss)
    if is_square:
        modulated = missed * (missed + gamma * loss * (_ONE - missed))
    else:
        slope = _ONE + gamma * (loss / missed) * (_ONE - missed)
        modulated = faded(missed, gamma, is_square) * slope
    return _ZERO if loss <= _ZERO else (_ONE if loss > _HOPELESS else modulated)


@inlined
def joined(product: Any, prob: Any, form: Any) -> Any:
    """Return Π - 1 with a factor more, 1 + s p / a. All terms have one sign: what is small is not lost."""
    x = form.s * prob / form.a
    return product + (x + product * x)


@inlined
def dual_value(
    loss: Any, log_product: Any, spilt: Any, own: Any, log_rest: Any, classes: int, form: Any
) -> Any:
    """Return φ of ℓ, log Π (1 + s p / a), where a sure p is left out of 1 - p, and Σ p^γ, each over j ≠ y."""
    room = log_product + np.float32(classes - 1) * form.log_a
    room = room + (log_rest if is_sure_mistake(own, log_rest, form) else _ZERO)
    room = _ZERO if form.b == _ZERO else form.b * room  # the logarithm may be infinite
    missed = power(_log_missed(own, log_rest), form.gamma)
    spilt = missed if form.gamma == _ONE else spilt  # the other probabilities add up to 1 - p_y
    return loss + room + form.alpha * (missed + spilt)


@inlined
def dual_slope(prob: Any, is_left_out: bool, form: Any) -> Any:
    """Return u / p of a class that is not the label, without what a sure class gives and, but for γ = 1, p^γ."""
    room = _ZERO if is_left_out else form.b * form.s / (form.a + form.s * prob)
    return room + (form.alpha if form.gamma == _ONE else _ZERO)


@inlined
def dual_own_slope(own: Any, log_rest: Any, form: Any) -> Any:
    """Return u of the label from its log p, without what it gives."""
    steep = exp(own + (form.gamma - _ONE) * _log_missed(own, log_rest))
    return -_ONE if is_sure(own, log_rest) else -form.alpha * form.gamma * steep - _ONE


@inlined
def given(own: Any, log_rest: Any, form: Any) -> Any:
    """Return what a sure class m gives to the others, and 0 where none is sure.

    With their shares q_k = p_k / (1 - p_m), d log(1 - p_m) = Σ_{k≠m} q_k d log p_k. As Σ_k p_k d log p_k = 0, it
    changes no gradient that they get its slope, and spares the difference of two large numbers.
    """
    missed = form.alpha * form.gamma * power(log_rest, form.gamma)
    mistake = form.b if is_sure_mistake(own, log_rest, form) else _ZERO
    return missed if is_sure(own, log_rest) else mistake


@inlined
def is_sure(log_prob: Any, log_rest: Any) -> Any:
    """Whether a class is the sure one."""
    return (log_rest < -_ONE) & (log_prob > _LIKELY)


@inlined
def is_sure_mistake(own: Any, log_rest: Any, form: Any) -> Any:
    """Whether another class than the label is sure, and log(1 - p) of it is asked."""
    return (log_rest < -_ONE) & (own <= _LIKELY) & leaves_out(form)


@inlined
def leaves_out(form: Any) -> Any:
    """Whether the form has log(1 - p), so that a sure p is left out of its sum."""
    return (form.a == _ONE) & (form.s < _ZERO)


@inlined
def power(log_value: Any, exponent: Any) -> Any:
    """Return x^γ from log x; for γ = 0 it is 1 of any x, 0 included."""
    return _ONE if exponent == _ZERO else exp(exponent * log_value)


@inlined
def _log_missed(own: Any, log_rest: Any) -> Any:
    """Return log(1 - p) of the label from its log p."""
    return log_rest if is_sure(own, log_rest) else log_difference(_ONE, exp(own))
