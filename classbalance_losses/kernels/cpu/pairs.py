r"""Cross-entropy, focal and overlap of two classes, by the wrong logit less the right one, u.

With :math:`e = e^{-|u|}` the loss is :math:`\ell = \max(u, 0) + \log(1 + e)`, and what p_y misses, :math:`m = 1 - p_y`,
has :math:`\log m = \min(u, 0) - \log(1 + e)`: one logarithm of a pixel is enough, and backward is as quick without s.
Single logits, those of class 1, are read where they lie, and so is their gradient written: no row of class 0 is made.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from classbalance_losses.kernels.cpu.math import (
    alike,
    compiled,
    exp,
    floats,
    inlined,
    log1p_of_part,
    summing,
    wide,
)
from classbalance_losses.kernels.cpu.passes import (
    GIVEN,
    HIGHEST,
    ONE,
    OWN,
    SHARE,
    SLOPE,
    TIES,
    VALUE,
    ZERO,
    Tile,
    row,
)
from classbalance_losses.kernels.forms.cpu import CROSS_ENTROPY, FOCAL, SQUARE, faded

_TWO = np.float32(2)
_SURE = np.float32(104)  # from which on p is below all rounding
_POWER = HIGHEST  # e


@compiled
def forward_pair(form: Any, label: Any, with_error: bool, maps: Any) -> None:
    """Write φ, if there is a form, and, if asked, ‖p - e_y‖² = 2 m² in the place of ties."""
    wide()
    alike()
    if form.code == FOCAL and form.gamma == SQUARE:
        for p in range(label.size):
            u, e = maps[OWN + p], maps[_POWER + p]
            maps[VALUE + p] = faded(_missed(u, e), form.gamma, True) * (max(u, ZERO) + log1p_of_part(e))
    elif form.code == FOCAL:
        for p in range(label.size):
            u, log_rest = maps[OWN + p], log1p_of_part(maps[_POWER + p])
            maps[VALUE + p] = exp(form.gamma * (min(u, ZERO) - log_rest)) * (max(u, ZERO) + log_rest)
    elif form.code == CROSS_ENTROPY:
        for p in range(label.size):
            maps[VALUE + p] = max(maps[OWN + p], ZERO) + log1p_of_part(maps[_POWER + p])
    if with_error:
        for p in range(label.size):
            missed = _missed(maps[OWN + p], maps[_POWER + p])
            maps[TIES + p] = _TWO * missed * missed


@summing
def add_pair_overlap(label: Any, maps: Any, sums: Any) -> None:
    """Add q p_k to the first float64 sums (2, 2), and that of the label to the second."""
    wide()
    absent, missed_absent, present, missed_present = ZERO, ZERO, ZERO, ZERO
    for p in range(label.size):
        missed, prob = _missed_and_prob(maps[OWN + p], maps[_POWER + p])
        missed, prob = missed * maps[SHARE + p], prob * maps[SHARE + p]
        absent += prob if label[p] == 0 else ZERO
        missed_absent += missed if label[p] == 0 else ZERO
        present += prob if label[p] == 1 else ZERO
        missed_present += missed if label[p] == 1 else ZERO
    sums[0] += np.float64(absent) + np.float64(missed_present)
    sums[1] += np.float64(present) + np.float64(missed_absent)
    sums[2] += absent
    sums[3] += present


@compiled
def backward_pair(form: Any, label: Any, slopes: Any, maps: Any) -> None:
    """Write the slope in u, by the given one of each pixel and those of the overlap (2, 2), if there are any."""
    wide()
    if form.code == FOCAL and form.gamma == SQUARE:
        for p in range(label.size):
            u, e = maps[OWN + p], maps[_POWER + p]
            missed, prob = _missed_and_prob(u, e)
            steep = missed + form.gamma * (max(u, ZERO) + log1p_of_part(e)) * prob
            steep = faded(missed, form.gamma, True) * steep
            maps[SLOPE + p] = maps[GIVEN + p] * (ONE if u > _SURE else steep)
    elif form.code == FOCAL:
        for p in range(label.size):
            u, e = maps[OWN + p], maps[_POWER + p]
            log_rest, (missed, prob) = log1p_of_part(e), _missed_and_prob(u, e)
            steep = missed + form.gamma * (max(u, ZERO) + log_rest) * prob
            steep = exp(form.gamma * (min(u, ZERO) - log_rest)) * steep
            maps[SLOPE + p] = maps[GIVEN + p] * (ONE if u > _SURE else steep)
    else:
        for p in range(label.size):
            maps[SLOPE + p] = maps[GIVEN + p] * _missed(maps[OWN + p], maps[_POWER + p])
    if slopes.size:
        rise = slopes[1] - slopes[0]  # of class 1's probability, which falls with u where it is the label
        absent, present = rise - slopes[2], -rise - slopes[3]
        for p in range(label.size):
            missed, prob = _missed_and_prob(maps[OWN + p], maps[_POWER + p])
            pushed = missed * prob * maps[SHARE + p]
            maps[SLOPE + p] += pushed * (present if label[p] == 1 else absent)


@compiled
def write_pair(gradient: Tile, label: Any, maps: Any) -> None:
    """Write the gradient of both logits, or of a single one, by the slope in u; 0 where ignored."""
    one = row(gradient, gradient.classes - 1)
    for p in range(label.size):
        pushed = maps[SLOPE + p] if label[p] >= 0 else ZERO
        one[p] = -pushed if label[p] == 1 else pushed
    if gradient.classes == 2:
        zero = row(gradient, 0)
        for p in range(label.size):
            zero[p] = -one[p]


@compiled
def find_margin(x: Tile, bias: int, label: Any, maps: Any) -> None:
    """Write u, which is NaN where a logit is NaN or infinite upwards, or both are infinite, and e.

    A bias at an address, if any, is that of a single logit; it has been added to two.
    """
    wide()
    alike()
    if x.classes == 1:
        biases = floats(bias, 2 if bias else 0)
        zero, more = (biases[0], biases[1]) if bias else (ZERO, ZERO)
        one = row(x, 0)
        for p in range(label.size):
            _write_margin(zero, one[p] + more, label[p], p, maps)
    else:
        both, one = row(x, 0), row(x, 1)
        for p in range(label.size):
            _write_margin(both[p], one[p], label[p], p, maps)


@inlined
def _write_margin(zero: Any, one: Any, label: Any, p: int, maps: Any) -> None:
    largest = one if one > zero else zero
    u = (one - zero) + (largest - largest)
    maps[OWN + p] = -u if label == 1 else u
    maps[_POWER + p] = exp(-np.abs(u))


@inlined
def _missed(u: Any, e: Any) -> Any:
    """Return m of u and e."""
    return (e if u < ZERO else ONE) / (ONE + e)


@inlined
def _missed_and_prob(u: Any, e: Any) -> Any:
    """Return m and 1 - m, each without cancellation."""
    part = ONE / (ONE + e)
    return (e if u < ZERO else ONE) * part, (ONE if u < ZERO else e) * part
