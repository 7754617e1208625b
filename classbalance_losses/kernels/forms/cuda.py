r"""The forms for Triton: their value, and their slope, of a pixel.

Kernels are given a form's kind, a constant by which code is chosen as it is compiled, and four numbers. One of
``OF_LOSS`` is a function of a pixel's cross-entropy ℓ. One of the others is a function of all its log-probabilities:
`add` takes one class after the other into five sums, `value` makes φ of them, `slope` and `total_slope` make
:math:`u_k = \partial \varphi / \partial \log p_k` and :math:`\sum_j u_j`, which give the gradient in the logits,
:math:`u_k - p_k \sum_j u_j`.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from classbalance_losses.kernels.cuda.device import (
    LOG2E,
    LOWEST,
    at_most,
    divide,
    exp,
    exp2,
    load_class,
    log1p,
)
from classbalance_losses.kernels.forms import reference
from classbalance_losses.kernels.forms.reference import Form

_KINDS: dict[str, Any] = {
    "cross entropy": reference.CrossEntropy,
    "focal": reference.Focal,
    "smoothed": reference.Smoothed,
    "dual cross entropy": reference.DualCrossEntropy,
    "dual focal": reference.DualFocal,
    "adjusted": reference.Adjusted,
}
_KIND_OF = {form: kind for kind, form in _KINDS.items()}
OF_LOSS = ("cross entropy", "focal")
_SURE = tl.constexpr(reference.SURE)


def parameters(form: Form) -> tuple[str, list[float], Tensor | None]:
    """Return what stands for a form where operators take it: its kind, its numbers and its weight or bias."""
    kind, numbers = _KIND_OF[type(form)], [float(number) for number in form if not isinstance(number, Tensor)]
    vectors = [vector for vector in form if isinstance(vector, Tensor)]
    return kind, [] if kind == "cross entropy" else numbers, vectors[0] if vectors else None


def form_of(kind: str, numbers: Sequence[float], weight: Tensor | None) -> Form:
    """Return the form that `parameters` stand for."""
    form: Form = _KINDS[kind](*numbers, *([] if weight is None else [weight]))
    return form


def for_kernel(kind: str, numbers: Sequence[float], num_classes: int) -> tuple[str, tuple[float, ...]]:
    """Return the kind and the four numbers that kernels take."""
    if kind == "focal" and numbers[0] in (1, 2):  # that need no logarithm
        kind = f"focal {numbers[0]:.0f}"
    elif kind == "smoothed":
        numbers = [1 - numbers[0], numbers[0] / num_classes]
    elif kind == "dual cross entropy":
        alpha, beta = numbers
        numbers = [1 / alpha, beta, beta * (num_classes - 1) * math.log(alpha), alpha]
    return kind, (*numbers, *[0.0] * (4 - len(numbers)))


@triton.jit
def of_loss(kind: tl.constexpr, loss, p, missed, gamma):
    r"""Return φ and its slope :math:`d\varphi / d\ell`; ``p`` is p_y, and ``missed`` u = 1 − p_y.

    Focal's are :math:`u^\gamma \ell` and :math:`u^{\gamma-1} (u + \gamma \ell p_y)`.
    """
    if kind == "cross entropy":
        found = loss
        slope = tl.full(loss.shape, 1.0, tl.float32)
    else:
        if kind == "focal 1":
            lower = tl.full(loss.shape, 1.0, tl.float32)
        elif kind == "focal 2":
            lower = missed
        else:  # a power of 0 may be infinite, where φ and its slope are 0
            lower = tl.where(missed == 0.0, 0.0, tl.exp2((gamma - 1.0) * tl.log2(missed)))
        found = lower * missed * loss
        # Where ℓ is infinite p_y is 0. A NaN is in the other number, too.
        slope = lower * (missed + gamma * p * at_most(loss, 100.0))
    return found, slope


@triton.jit
def add(
    kind: tl.constexpr, with_slope: tl.constexpr, log_p, own, weight, n0, n1, n2, n3, s0, s1, s2, s3, s4
):  # fmt: skip
    """Take a class into the sums, which start from 0, 0, 0, 0 and LOWEST. ``own``: whether it is the pixel's.

    Those that the slope needs and those that the value needs differ. ``weight`` is the class's, or its bias.
    """
    p = exp(log_p)
    if kind == "smoothed":
        s0 += tl.where(weight == 0.0, 0.0, -weight * log_p)  # a NaN is in ℓ, too
        s1 += weight
        s2 += tl.where(own, weight, 0.0)
    elif kind == "dual cross entropy":
        if with_slope:
            s0 += tl.where(own, -1.0, n1 * divide(p, p + n3))
        else:
            s0 += tl.where(own, 0.0, log1p(p * n0))
    elif kind == "adjusted":
        s2 += tl.where(own, log_p + weight, 0.0)
        s3, s4 = _add_power(tl.where(own, float("-inf"), log_p + weight), s3, s4)
    else:
        sure = log_p > _SURE
        s0 += tl.where(own, 0.0, _power(log_p, n2))
        # What stands in the place of the sure class's logarithm is known at the end.
        room = n1 * divide(p, n3 - p) if with_slope else tl.where(n3 == 1.0, log1p(-p), tl.log(n3 - p))
        s1 += tl.where(own | (sure & (n3 == 1.0)), 0.0, room)
        s2 += tl.where(own, log_p, 0.0)
        # Σ p over the others than a sure one, as s3 · e^s4: its logarithm is to stay finite.
        s3, s4 = _add_power(tl.where(sure, float("-inf"), log_p), s3, s4)
    return s0, s1, s2, s3, s4


@triton.jit
def _add_power(x, total, largest):
    """Return a sum of e^x, as total · e^largest, with one x more."""
    new = tl.maximum(largest, x)
    return total * exp(largest - new) + exp(x - new), new


@triton.jit
def as_tensors(n0, n1, n2, n3, block: tl.constexpr):
    """Return numbers as tensors, which the interpreter of Triton 3.2 needs where they are compared."""
    zero = tl.zeros((block,), tl.float32)
    return zero + n0, zero + n1, zero + n2, zero + n3


@triton.jit
def sums(
    kind: tl.constexpr, with_slope: tl.constexpr, logits, bias_ptr, step, inside, target, top, log_total,
    weight_ptr, n0, n1, n2, n3, single: tl.constexpr, num_classes, block: tl.constexpr,
):  # fmt: skip
    """Return the sums over all classes, of the logits there."""
    s0 = tl.zeros((block,), tl.float32)
    s1, s2, s3 = s0, s0, s0
    s4 = tl.full((block,), LOWEST, tl.float32)
    for k in range(num_classes):
        x = load_class(logits, bias_ptr, k, step, inside, single)
        weight = 1.0
        if weight_ptr is not None:
            weight = tl.load(weight_ptr + k)
        s0, s1, s2, s3, s4 = add(
            kind, with_slope, (x - top) - log_total, target == k, weight, n0, n1, n2, n3, s0, s1, s2, s3, s4
        )
    return s0, s1, s2, s3, s4


@triton.jit
def value(kind: tl.constexpr, loss, n0, n1, n2, n3, s0, s1, s2, s3, s4):
    """Return φ from the cross-entropy and the sums over all classes."""
    if kind == "smoothed":
        found = n0 * tl.where((s2 == 0.0) & (loss == float("inf")), 0.0, s2 * loss) + n1 * s0
    elif kind == "dual cross entropy":
        found = loss + (n1 * s0 + n2)
    elif kind == "adjusted":
        _, odds = _odds(s2, s3, s4)
        found = tl.maximum(odds, 0.0) + log1p(exp(-tl.abs(odds)))
    else:
        missed, log_rest, mistaken = _missed(s2, s3, s4, n2, n3)
        room = s1 + tl.where(mistaken, log_rest, 0.0)
        room = tl.where(n1 == 0.0, 0.0, n1 * room)
        found = loss - room + n0 * (missed + s0)
    return found


@triton.jit
def total_slope(kind: tl.constexpr, n0, n1, n2, n3, s0, s1, s2, s3, s4):
    """Return Σ u_k from the sums over all classes."""
    if kind == "smoothed":
        total = -n0 * s2 - n1 * s1
    elif kind == "dual cross entropy":
        total = s0
    elif kind == "adjusted":
        total = s3 * 0.0
    else:
        own, given, _ = _slopes_of_rest(n0, n1, n2, n3, s2, s3, s4)
        total = s1 + n0 * n2 * s0 + own + tl.where(s3 > 0.0, given, 0.0)
    return total


@triton.jit
def slope(kind: tl.constexpr, log_p, own, weight, n0, n1, n2, n3, s0, s1, s2, s3, s4):
    """Return u_k of a class."""
    p = exp(log_p)
    if kind == "smoothed":
        found = -n1 * weight - tl.where(own, n0 * weight, 0.0)
    elif kind == "dual cross entropy":
        found = tl.where(own, -1.0, n1 * divide(p, p + n3))
    elif kind == "adjusted":
        rest, odds = _odds(s2, s3, s4)
        log_total = tl.maximum(rest, s2) + log1p(exp(-tl.abs(odds)))
        found = tl.where(own, -divide(1.0, 1.0 + exp(-odds)), exp(log_p + weight - log_total))
    else:
        sure = log_p > _SURE
        of_own, given, log_rest = _slopes_of_rest(n0, n1, n2, n3, s2, s3, s4)
        room = tl.where(sure & (n3 == 1.0), 0.0, n1 * divide(p, n3 - p))
        found = tl.where(own, of_own, room + n0 * n2 * _power(log_p, n2))
        found += tl.where(sure | (s3 == 0.0), 0.0, given * exp(log_p - log_rest))
    return found


@triton.jit
def _odds(own, rest, largest):
    """Return the logarithm of the others' sum, and by how much it is above that of the label's part."""
    log_rest = largest + tl.log(rest)
    return log_rest, log_rest - own


@triton.jit
def _power(log_value, exponent):
    """Return a power from a logarithm; the 0th is 1 of any number, 0 included."""
    return tl.where(exponent == 0.0, 1.0, exp2(log_value * exponent * LOG2E))


@triton.jit
def _missed(log_own, rest, largest, gamma, rho):
    """Return (1 − p_y)^γ, log(1 − p_m) of a sure class m, and whether that is there, not y, and ρ is 1."""
    log_rest = largest + tl.log(rest)
    own_is_sure = log_own > _SURE
    log_missed = tl.where(own_is_sure, log_rest, log1p(-tl.where(own_is_sure, 0.0, exp(log_own))))
    return _power(log_missed, gamma), log_rest, (log_rest < -1.0) & (log_own <= _SURE) & (rho == 1.0)


@triton.jit
def _slopes_of_rest(alpha, beta, gamma, rho, log_own, rest, largest):
    r"""Return u_y without, and the factor of, what a sure class m gives to the others, and log(1 − p_m).

    1 − p_m is the sum of the others, and its slope is given to them: with their shares
    :math:`q_k = p_k / (1 - p_m)`, :math:`d \log(1 - p_m) = \sum_{k \ne m} q_k\, d \log p_k`. As
    :math:`\sum_k p_k\, d \log p_k = 0` that changes no gradient, and it spares the difference of two large numbers.
    """
    missed, log_rest, mistaken = _missed(log_own, rest, largest, gamma, rho)
    own_is_sure = log_own > _SURE
    p = exp(log_own)
    steepness = alpha * gamma
    own = -1.0 - tl.where(
        own_is_sure, 0.0, steepness * missed * divide(p, 1.0 - tl.where(own_is_sure, 0.0, p))
    )
    given = tl.where(own_is_sure, steepness * missed, tl.where(mistaken, -beta, 0.0))
    return own, given, log_rest
