r"""Cross-entropy and focal of two classes, by :math:`\ell = \log(1 + e^u)`, where u is the wrong logit less the right.

It takes one exponential and one logarithm of a pixel, and what is kept of others for backward is not worth its memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from classbalance_losses.kernels.cpu.math import compiled, exp, expm1, inlined, log1p
from classbalance_losses.kernels.cpu.passes import ONE, SLOPE, TIES, VALUE, ZERO, Tile, row
from classbalance_losses.kernels.forms.cpu import FOCAL, focal_slope, focal_value

_TWO = np.float32(2)


@compiled
def forward_pair(form: Any, x: Tile, label: Any, with_error: bool, maps: Any) -> None:
    """Write φ and, if asked, ‖p - e_y‖² of cross-entropy in the place of ties."""
    zero, one = row(x, 0), row(x, 1)
    for p in range(x.size):
        u = _margin(zero[p], one[p], label[p])
        maps[VALUE + p] = _loss(u, exp(-np.abs(u)))
    if with_error:
        for p in range(x.size):
            missed = expm1(-maps[VALUE + p])
            maps[TIES + p] = _TWO * missed * missed
    if form.code == FOCAL:
        for p in range(x.size):
            maps[VALUE + p] = focal_value(maps[VALUE + p], form.gamma)


@compiled
def backward_pair(form: Any, x: Tile, gradient: Tile, label: Any, slope: Any, maps: Any) -> None:
    """Write the gradient, by a slope of each pixel; 0 where ignored."""
    zero, one = row(x, 0), row(x, 1)
    for p in range(x.size):
        u = _margin(zero[p], one[p], label[p])
        e = exp(-np.abs(u))
        maps[VALUE + p] = _loss(u, e)
        maps[SLOPE + p] = slope[p] * ((e if u < ZERO else ONE) / (ONE + e))
    if form.code == FOCAL:
        for p in range(x.size):
            maps[SLOPE + p] *= focal_slope(maps[VALUE + p], form.gamma)
    zero, one = row(gradient, 0), row(gradient, 1)
    for p in range(x.size):
        pushed = maps[SLOPE + p] if label[p] >= 0 else ZERO
        pushed = -pushed if label[p] == 1 else pushed
        zero[p], one[p] = -pushed, pushed


@inlined
def _margin(zero: Any, one: Any, label: Any) -> Any:
    """Return u, which is NaN where a logit is NaN or infinite upwards, or both are infinite."""
    largest = one if one > zero else zero
    u = (one - zero) + (largest - largest)
    return -u if label == 1 else u


@inlined
def _loss(u: Any, e: Any) -> Any:
    """Return ℓ of u and e^-|u|."""
    return (ZERO if u < ZERO else u) + log1p(e)
