r"""What the pixel pass does with a tile, in memory or made on the way: value, gradient and sums of errors.

The number of a tile's pixels is the size of ``label``, at most ``PITCH``, whose labels `labels.classes_of` makes.
Logits are float32 at an address, with a class stride in entries; maps and slopes of the pixels are float32 at
addresses, too, and 0 is the address of what is not given or not asked. ``form`` is a ``FORM``.

Forward keeps :math:`s = \log \sum_k e^{x_k - \max}`, which is not finite where a logit is NaN or infinite upwards.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from classbalance_losses.kernels.cpu.dual_passes import make_dual_value, write_dual_gradient
from classbalance_losses.kernels.cpu.math import compiled, exp, exp_or_zero, floats
from classbalance_losses.kernels.cpu.passes import (
    HIGHEST,
    INF,
    LOG_SUM,
    ONE,
    OTHERS,
    OWN,
    PITCH,
    ROWS,
    SLOPE,
    TIES,
    TOTAL,
    VALUE,
    ZERO,
    Tile,
    clear,
    find_largest,
    find_own,
    log_prob,
    row,
    sum_beside_label,
    sum_beside_largest,
)
from classbalance_losses.kernels.forms.cpu import (
    DUAL_CROSS_ENTROPY,
    FOCAL,
    SMOOTHED,
    focal_slope,
    focal_value,
    read,
)

__all__ = ["PITCH", "ROWS", "backward_tile", "error_tile", "forward_tile"]

_APART = 4  # neighbours whose errors are added to other sums
_PULL = OTHERS


@compiled
def forward_tile(
    form: Any, x: int, stride: int, classes: int, label: Any, maps: Any, value: int, error: int, log_sum: int
) -> None:
    """Write φ of each pixel and, if asked, of cross-entropy ‖p - e_y‖², 0 where ignored; s of all."""
    _forward(read(form), Tile(x, stride, classes, label.size), label, error != 0, maps)
    _write_kept(maps, VALUE, label, value)
    if error:
        _write_kept(maps, TIES, label, error)
    if log_sum:
        out = floats(log_sum, label.size)
        for p in range(label.size):
            out[p] = maps[LOG_SUM + p]


@compiled
def _forward(form: Any, x: Tile, label: Any, with_error: bool, maps: Any) -> None:
    find_largest(x, maps)
    find_own(x, label, maps)
    if form.code >= DUAL_CROSS_ENTROPY:
        sum_beside_largest(x, maps)
    else:
        sum_beside_label(x, label, with_error, maps)
    for p in range(x.size):
        maps[OWN + p] -= maps[LOG_SUM + p]
        maps[VALUE + p] = -maps[OWN + p]
    if form.code == FOCAL:
        for p in range(x.size):
            maps[VALUE + p] = focal_value(maps[VALUE + p], form.gamma)
    elif form.code == SMOOTHED:
        _smooth(form, x, label, maps)
    elif form.code >= DUAL_CROSS_ENTROPY:
        make_dual_value(form, x, label, maps)


@compiled
def backward_tile(
    form: Any,
    x: int,
    stride: int,
    classes: int,
    label: Any,
    maps: Any,
    slope: int,
    log_sum: int,
    gradient: int,
    gradient_stride: int,
) -> None:
    """Write the gradient, in other memory than the logits', by a slope of each pixel; 0 where ignored.

    s is found again if it is not given.
    """
    tile, slopes, kept = (
        Tile(x, stride, classes, label.size),
        floats(slope, label.size),
        floats(log_sum, label.size),
    )
    find_largest(tile, maps)
    if log_sum:
        for p in range(label.size):
            maps[LOG_SUM + p] = kept[p]
    else:
        sum_beside_largest(tile, maps)
    for p in range(label.size):
        s = maps[LOG_SUM + p]
        # NaN where s is, for what is then multiplied by it are numbers: exp_or_zero makes them.
        maps[SLOPE + p] = slopes[p] + (s - s) if label[p] >= 0 else ZERO
    _backward(read(form), tile, Tile(gradient, gradient_stride, classes, label.size), label, maps)


@compiled
def _backward(form: Any, x: Tile, gradient: Tile, label: Any, maps: Any) -> None:
    if form.code >= DUAL_CROSS_ENTROPY:
        write_dual_gradient(form, x, gradient, label, maps)
        return
    weight = floats(form.weight, x.classes if form.code == SMOOTHED else 0)
    if form.code == FOCAL:
        find_own(x, label, maps)
        for p in range(x.size):
            slope = focal_slope(maps[LOG_SUM + p] - maps[OWN + p], form.gamma)
            maps[SLOPE + p] = maps[SLOPE + p] * slope if label[p] >= 0 else ZERO
    _pull(form, weight, label, maps)
    for k in range(x.classes):
        spread = form.smoothing / np.float32(x.classes) * weight[k] if weight.size else ZERO
        _slope_of_class(row(x, k), label, np.int32(k), spread, maps, row(gradient, k))


@compiled
def error_tile(
    x: int, stride: int, classes: int, label: Any, maps: Any, weight: int, squared: int, sums: Any
) -> None:
    """Add p_k - [k = y], times a weight of each pixel if given, or its square, to float64 sums of (k, y)."""
    tile, weights = Tile(x, stride, classes, label.size), floats(weight, label.size)
    find_largest(tile, maps)
    sum_beside_largest(tile, maps)
    for p in range(label.size):
        maps[SLOPE + p] = weights[p] if weight else ONE
    # Neighbours, which often have one label, are added apart: none waits for the other. The last is for the ignored.
    apart = np.empty((classes + 1, _APART), np.float64)
    for k in range(classes):
        logit = row(tile, k)
        for p in range(label.size):
            prob = exp(log_prob(logit, p, maps))
            delta = prob - ONE if label[p] == np.int32(k) else prob
            maps[TOTAL + p] = delta * delta if squared else delta * maps[SLOPE + p]
        apart[:] = 0
        for p in range(label.size):
            apart[label[p] if label[p] >= 0 else classes, p % _APART] += maps[TOTAL + p]
        for y in range(classes):
            for i in range(_APART):
                sums[k * classes + y] += apart[y, i]


@compiled
def _smooth(form: Any, x: Tile, label: Any, maps: Any) -> None:
    """Make (1 - ε) w_y ℓ + ε/C Σ w_c (-log p_c) of ℓ."""
    weight, total = floats(form.weight, x.classes), ZERO
    clear(TOTAL, x.size, maps)
    for k in range(x.classes):
        w, logit = weight[k], row(x, k)
        if w != 0:  # else the surprise, which may be infinite, adds nothing
            total += w
            for p in range(x.size):
                maps[TOTAL + p] += w * (maps[HIGHEST + p] - logit[p])
    for p in range(x.size):  # apart, for it is not done in vectors
        maps[OTHERS + p] = (ONE - form.smoothing) * weight[max(label[p], 0)]
    share = form.smoothing / np.float32(x.classes)
    for p in range(x.size):
        own, loss = maps[OTHERS + p], maps[VALUE + p]
        loss = ZERO if (own == ZERO) & (loss == INF) else loss
        maps[VALUE + p] = own * loss + share * (maps[TOTAL + p] + total * maps[LOG_SUM + p])


@compiled
def _pull(form: Any, weight: Any, label: Any, maps: Any) -> None:
    """Write A and, in the place of log p, B of a gradient p A - [k = y] B - w_k ε/C g."""
    total = ZERO
    for w in weight:
        total += w * form.smoothing / np.float32(weight.size)
    for p in range(label.size):
        slope = maps[SLOPE + p]
        own = slope * (ONE - form.smoothing) * weight[max(label[p], 0)] if weight.size else slope
        maps[_PULL + p], maps[OWN + p] = own + slope * total, own


@compiled
def _slope_of_class(logit: Any, label: Any, k: np.int32, spread: Any, maps: Any, place: Any) -> None:
    for p in range(label.size):
        own = maps[OWN + p] if label[p] == k else ZERO
        pulled = exp_or_zero(log_prob(logit, p, maps)) * maps[_PULL + p]
        place[p] = pulled - spread * maps[SLOPE + p] - own


@compiled
def _write_kept(maps: Any, first: int, label: Any, address: int) -> None:
    out = floats(address, label.size)
    for p in range(label.size):
        out[p] = maps[first + p] if label[p] >= 0 else ZERO
