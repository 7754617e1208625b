r"""Cross-entropy and focal of two classes, by the wrong logit less the right one, u.

With :math:`e = e^{-|u|}` the loss is :math:`\ell = \max(u, 0) + \log(1 + e)`, and what p_y misses, :math:`m = 1 - p_y`,
has :math:`\log m = \min(u, 0) - \log(1 + e)`: one logarithm of a pixel is enough, and backward is as quick without s.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from classbalance_losses.kernels.cpu.math import compiled, exp, inlined, log1p_of_part, wide
from classbalance_losses.kernels.cpu.passes import GIVEN, ONE, OWN, SLOPE, TIES, VALUE, ZERO, Tile, row
from classbalance_losses.kernels.forms.cpu import FOCAL, SQUARE, faded

_TWO = np.float32(2)
_SURE = np.float32(104)  # from which on p is below all rounding


@compiled
def forward_pair(form: Any, x: Tile, label: Any, with_error: bool, maps: Any) -> None:
    """Write φ and, if asked, ‖p - e_y‖² = 2 m² in the place of ties."""
    wide()
    _find_margin(x, label, maps)
    if form.code == FOCAL and form.gamma == SQUARE:
        for p in range(x.size):
            u = maps[OWN + p]
            e = exp(-np.abs(u))
            maps[VALUE + p] = faded(_missed(u, e), form.gamma, True) * (max(u, ZERO) + log1p_of_part(e))
    elif form.code == FOCAL:
        for p in range(x.size):
            u = maps[OWN + p]
            log_rest = log1p_of_part(exp(-np.abs(u)))
            maps[VALUE + p] = exp(form.gamma * (min(u, ZERO) - log_rest)) * (max(u, ZERO) + log_rest)
    else:
        for p in range(x.size):
            u = maps[OWN + p]
            maps[VALUE + p] = max(u, ZERO) + log1p_of_part(exp(-np.abs(u)))
    if with_error:
        for p in range(x.size):
            missed = _missed(maps[OWN + p], exp(-np.abs(maps[OWN + p])))
            maps[TIES + p] = _TWO * missed * missed


@compiled
def backward_pair(form: Any, x: Tile, gradient: Tile, label: Any, maps: Any) -> None:
    """Write the gradient, by the given slope of each pixel; 0 where ignored."""
    wide()
    _find_margin(x, label, maps)
    if form.code == FOCAL and form.gamma == SQUARE:
        for p in range(x.size):
            u = maps[OWN + p]
            e = exp(-np.abs(u))
            missed, prob = _missed_and_prob(u, e)
            steep = missed + form.gamma * (max(u, ZERO) + log1p_of_part(e)) * prob
            steep = faded(missed, form.gamma, True) * steep
            maps[SLOPE + p] = maps[GIVEN + p] * (ONE if u > _SURE else steep)
    elif form.code == FOCAL:
        for p in range(x.size):
            u = maps[OWN + p]
            e = exp(-np.abs(u))
            log_rest, (missed, prob) = log1p_of_part(e), _missed_and_prob(u, e)
            steep = missed + form.gamma * (max(u, ZERO) + log_rest) * prob
            steep = exp(form.gamma * (min(u, ZERO) - log_rest)) * steep
            maps[SLOPE + p] = maps[GIVEN + p] * (ONE if u > _SURE else steep)
    else:
        for p in range(x.size):
            u = maps[OWN + p]
            maps[SLOPE + p] = maps[GIVEN + p] * _missed(u, exp(-np.abs(u)))
    zero, one = row(gradient, 0), row(gradient, 1)
    for p in range(x.size):
        pushed = maps[SLOPE + p] if label[p] >= 0 else ZERO
        pushed = -pushed if label[p] == 1 else pushed
        zero[p], one[p] = -pushed, pushed


@compiled
def _find_margin(x: Tile, label: Any, maps: Any) -> None:
    """Write u, which is NaN where a logit is NaN or infinite upwards, or both are infinite."""
    wide()
    zero, one = row(x, 0), row(x, 1)
    for p in range(x.size):
        largest = one[p] if one[p] > zero[p] else zero[p]
        u = (one[p] - zero[p]) + (largest - largest)
        maps[OWN + p] = -u if label[p] == 1 else u


@inlined
def _missed(u: Any, e: Any) -> Any:
    """Return m of u and e."""
    return (e if u < ZERO else ONE) / (ONE + e)


@inlined
def _missed_and_prob(u: Any, e: Any) -> Any:
    """Return m and 1 - m, each without cancellation."""
    part = ONE / (ONE + e)
    return (e if u < ZERO else ONE) * part, (ONE if u < ZERO else e) * part
