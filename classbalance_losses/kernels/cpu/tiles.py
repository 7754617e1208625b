r"""What the pixel pass does with a tile: some pixels with all their classes, which stay in a thread's cache meanwhile.

Logits are float32, class by class: an address, and a class stride in entries; of a class, the pixels lie side by side.
Their number is the size of ``label``, and at most ``PITCH``; `labels.classes_of` makes the labels. ``maps`` is room
for ``ROWS`` numbers of each pixel, in one array at constant distances, as loops that are done in vectors need it.

Forward keeps :math:`s = \log \sum_k e^{x_k - \max}`, which is not finite where a logit is NaN or infinite upwards.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from classbalance_losses.kernels.cpu.math import (
    compiled,
    exp,
    exp_or_zero,
    expm1,
    floats,
    log1p,
    logarithm,
)
from classbalance_losses.kernels.forms.cpu import (
    DUAL_CROSS_ENTROPY,
    FOCAL,
    SMOOTHED,
    dual_own_slope,
    dual_slope,
    dual_value,
    focal_slope,
    focal_value,
    given,
    is_sure,
    joined,
    leaves_out,
    power,
)

PITCH = 512
ROWS = 9
_APART = 4
_HIGHEST, _OWN, _LOG_SUM, _OTHERS, _TIES, _VALUE, _TOTAL, _LOG_REST, _SLOPE = range(0, ROWS * PITCH, PITCH)
_SQUARES = _TIES  # forward
_PRODUCT, _SPILT = _OTHERS, _TIES  # forward, of the dual forms
_PULL = _OTHERS  # backward
_GIVEN, _SHARE = _OTHERS, _TIES  # backward, of the dual forms
_ZERO, _ONE, _INF = np.float32(0), np.float32(1), np.float32(np.inf)
_SURE_SUM = np.float32(1 / 3)  # of the others' e^(x - max): below, the largest has a probability of 3/4
_TINY, _LOG_TINY = np.float32(1e-30), np.float32(np.log(1e-30))


@compiled
def forward_tile(
    form: Any,
    x: int,
    stride: int,
    classes: int,
    label: Any,
    maps: Any,
    value: int,
    error: int,
    log_sum: int,
) -> None:
    """Write φ of each pixel at an address and, at those that are not 0, ‖p - e_y‖² and s; 0 where ignored, but s."""
    _largest(x, stride, classes, label.size, maps)
    _own(x, stride, classes, label, maps)
    if form.code >= DUAL_CROSS_ENTROPY:
        _sum_beside_largest(x, stride, classes, label.size, maps)
    else:
        _sum_beside_label(x, stride, classes, label, error, maps)
    for p in range(label.size):
        maps[_LOG_SUM + p] = log1p(maps[_OTHERS + p])
        maps[_OWN + p] -= maps[_LOG_SUM + p]
        maps[_VALUE + p] = -maps[_OWN + p]
    if form.code == FOCAL:
        for p in range(label.size):
            maps[_VALUE + p] = focal_value(maps[_VALUE + p], form.gamma)
    elif form.code == SMOOTHED:
        _smooth(form, x, stride, classes, label, maps)
    elif form.code >= DUAL_CROSS_ENTROPY:
        _log_rest(x, stride, classes, label.size, maps)
        _dual_value(form, x, stride, classes, label, maps)
    _write_kept(maps, _VALUE, label, value)
    if error:
        _write_kept(maps, _SQUARES, label, error)
    if log_sum:
        out = floats(log_sum, label.size)
        for p in range(label.size):
            out[p] = maps[_LOG_SUM + p]


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
    """Write the gradient by a slope of each pixel, 0 where ignored; s is found again if its address is 0.

    ``gradient`` is other memory than ``x``.
    """
    _largest(x, stride, classes, label.size, maps)
    if log_sum:
        kept = floats(log_sum, label.size)
        for p in range(label.size):
            maps[_LOG_SUM + p] = kept[p]
    else:
        _sum_beside_largest(x, stride, classes, label.size, maps)
        for p in range(label.size):
            maps[_LOG_SUM + p] = log1p(maps[_OTHERS + p])
    slopes = floats(slope, label.size)
    for p in range(label.size):
        s = maps[_LOG_SUM + p]
        # NaN where s is, for what is then multiplied by it are numbers: exp_or_zero makes them.
        maps[_SLOPE + p] = slopes[p] + (s - s) if label[p] >= 0 else _ZERO
    if form.code >= DUAL_CROSS_ENTROPY:
        _dual_gradient(form, x, stride, classes, label, maps, gradient, gradient_stride)
    else:
        if form.code == FOCAL:
            _own(x, stride, classes, label, maps)
        _pull(form, classes, label, maps)
        weight = floats(form.weight, classes if form.code == SMOOTHED else 0)
        for k in range(classes):
            row = floats(x + 4 * k * stride, label.size)
            place = floats(gradient + 4 * k * gradient_stride, label.size)
            spread = form.smoothing / np.float32(classes) * weight[k] if form.code == SMOOTHED else _ZERO
            _slope_of_class(row, label, np.int32(k), spread, maps, place)


@compiled
def error_tile(
    x: int, stride: int, classes: int, label: Any, maps: Any, weight: int, squared: int, sums: Any
) -> None:
    """Add p_k - [k = y], times a weight of each pixel if its address is not 0, or its square, to sums of (k, y)."""
    _largest(x, stride, classes, label.size, maps)
    _sum_beside_largest(x, stride, classes, label.size, maps)
    factor = floats(weight, label.size if weight else 0)
    for p in range(label.size):
        maps[_LOG_SUM + p] = log1p(maps[_OTHERS + p])
        maps[_SLOPE + p] = factor[p] if weight else _ONE
    # Neighbours, which often have one label, are added apart: none waits for the other. The last is for the ignored.
    apart = np.empty((classes + 1, _APART), np.float64)
    for k in range(classes):
        row = floats(x + 4 * k * stride, label.size)
        for p in range(label.size):
            prob = exp(row[p] - maps[_HIGHEST + p] - maps[_LOG_SUM + p])
            delta = prob - _ONE if label[p] == np.int32(k) else prob
            maps[_TOTAL + p] = delta * delta if squared else delta * maps[_SLOPE + p]
        apart[:] = 0
        for p in range(label.size):
            apart[label[p] if label[p] >= 0 else classes, p % _APART] += maps[_TOTAL + p]
        for y in range(classes):
            for i in range(_APART):
                sums[k * classes + y] += apart[y, i]


@compiled
def _largest(x: int, stride: int, classes: int, size: int, maps: Any) -> None:
    for k in range(classes):
        row = floats(x + 4 * k * stride, size)
        for p in range(size):
            largest = maps[_HIGHEST + p]
            maps[_HIGHEST + p] = row[p] if (k == 0) | (row[p] > largest) else largest


@compiled
def _own(x: int, stride: int, classes: int, label: Any, maps: Any) -> None:
    values = floats(x, (classes - 1) * stride + label.size)
    for p in range(label.size):
        maps[_OWN + p] = values[max(label[p], 0) * stride + p] - maps[_HIGHEST + p]


@compiled
def _sum_beside_largest(x: int, stride: int, classes: int, size: int, maps: Any) -> None:
    """Write Σ e^(x - max) less 1, which the largest is: what others there are is not lost in rounding."""
    for p in range(size):
        maps[_OTHERS + p], maps[_TIES + p] = _ZERO, _ZERO
    for k in range(classes):
        row = floats(x + 4 * k * stride, size)
        for p in range(size):
            power = exp(row[p] - maps[_HIGHEST + p])
            is_largest = power == _ONE
            maps[_OTHERS + p] += _ZERO if is_largest else power
            maps[_TIES + p] += _ONE if is_largest else _ZERO
    for p in range(size):
        maps[_OTHERS + p] += maps[_TIES + p] - _ONE


@compiled
def _sum_beside_label(x: int, stride: int, classes: int, label: Any, error: int, maps: Any) -> None:
    """Write Σ e^(x - max) less 1 and, if asked, ‖p - e_y‖²: where the label is the largest, what the others sum to."""
    for p in range(label.size):
        maps[_OTHERS + p], maps[_SQUARES + p] = _ZERO, _ZERO
    for k in range(classes):
        row = floats(x + 4 * k * stride, label.size)
        if error:
            _add_others_and_squares(row, label, np.int32(k), maps)
        else:
            _add_others(row, label, np.int32(k), maps)
    for p in range(label.size):
        others = maps[_OTHERS + p]
        more = others + expm1(maps[_OWN + p])
        # ‖p − e_y‖² = Σ p_k² + (1 − p_y)² = Σ p_k² + (Σ p_k)² over k ≠ y, which subtracts nothing
        maps[_SQUARES + p] = (maps[_SQUARES + p] + others * others) / (more + _ONE) / (more + _ONE)
        maps[_OTHERS + p] = more


@compiled
def _add_others(row: Any, label: Any, k: np.int32, maps: Any) -> None:
    for p in range(label.size):
        power = exp(row[p] - maps[_HIGHEST + p])
        maps[_OTHERS + p] += power if label[p] != k else _ZERO


@compiled
def _add_others_and_squares(row: Any, label: Any, k: np.int32, maps: Any) -> None:
    for p in range(label.size):
        power = exp(row[p] - maps[_HIGHEST + p])
        other = power if label[p] != k else _ZERO
        maps[_OTHERS + p] += other
        maps[_SQUARES + p] += other * other


@compiled
def _smooth(form: Any, x: int, stride: int, classes: int, label: Any, maps: Any) -> None:
    """Make (1 - ε) w_y ℓ + ε/C Σ w_c (-log p_c) of ℓ."""
    weight, total = floats(form.weight, classes), _ZERO
    for p in range(label.size):
        maps[_TOTAL + p] = _ZERO
    for k in range(classes):
        w = weight[k]
        if w != 0:  # else the surprise, which may be infinite, adds nothing
            total += w
            row = floats(x + 4 * k * stride, label.size)
            for p in range(label.size):
                maps[_TOTAL + p] += w * (maps[_HIGHEST + p] - row[p])
    for p in range(label.size):  # apart, for it is not done in vectors
        maps[_OTHERS + p] = (_ONE - form.smoothing) * weight[max(label[p], 0)]
    share = form.smoothing / np.float32(classes)
    for p in range(label.size):
        own, loss = maps[_OTHERS + p], maps[_VALUE + p]
        loss = _ZERO if (own == _ZERO) & (loss == _INF) else loss
        maps[_VALUE + p] = own * loss + share * (maps[_TOTAL + p] + total * maps[_LOG_SUM + p])


@compiled
def _dual_value(form: Any, x: int, stride: int, classes: int, label: Any, maps: Any) -> None:
    """Make φ of ℓ by what the other classes add."""
    for p in range(label.size):
        maps[_TOTAL + p], maps[_PRODUCT + p], maps[_SPILT + p] = _ZERO, _ZERO, _ZERO
    if form.b != 0:
        for k in range(classes):
            _multiply(form, floats(x + 4 * k * stride, label.size), label, np.int32(k), maps)
            if (k + 1) % form.together == 0 or k + 1 == classes:
                for p in range(label.size):
                    maps[_TOTAL + p] += log1p(maps[_PRODUCT + p])
                    maps[_PRODUCT + p] = _ZERO
    if form.alpha != 0 and form.gamma != 1:
        for k in range(classes):
            _add_powers(form, floats(x + 4 * k * stride, label.size), label, np.int32(k), maps)
    for p in range(label.size):
        maps[_VALUE + p] = dual_value(
            maps[_VALUE + p],
            maps[_TOTAL + p],
            maps[_SPILT + p],
            maps[_OWN + p],
            maps[_LOG_REST + p],
            classes,
            form,
        )


@compiled
def _multiply(form: Any, row: Any, label: Any, k: np.int32, maps: Any) -> None:
    is_short = leaves_out(form)
    for p in range(label.size):
        log_prob = row[p] - maps[_HIGHEST + p] - maps[_LOG_SUM + p]
        is_out = (label[p] == k) | (is_sure(log_prob, maps[_LOG_REST + p]) & is_short)
        product = maps[_PRODUCT + p]
        maps[_PRODUCT + p] = product if is_out else joined(product, exp(log_prob), form)


@compiled
def _add_powers(form: Any, row: Any, label: Any, k: np.int32, maps: Any) -> None:
    for p in range(label.size):
        spilt = power(row[p] - maps[_HIGHEST + p] - maps[_LOG_SUM + p], form.gamma)
        maps[_SPILT + p] += _ZERO if label[p] == k else spilt


@compiled
def _log_rest(x: int, stride: int, classes: int, size: int, maps: Any) -> None:
    """Write log(1 - p) of a class that is nearly sure, by the sum of the others, and 0 where none is."""
    tiny = 0
    for p in range(size):
        s = maps[_LOG_SUM + p]
        others = expm1(s)
        maps[_LOG_REST + p] = logarithm(others) - s if others < _SURE_SUM else _ZERO
        tiny += others < _TINY
    if tiny:
        for p in range(size):
            if expm1(maps[_LOG_SUM + p]) < _TINY:
                maps[_LOG_REST + p] = _log_sum_of_others(x + 4 * p, stride, classes, maps[_HIGHEST + p])


@compiled
def _log_sum_of_others(x: int, stride: int, classes: int, highest: Any) -> Any:
    """Return log Σ e^(x - highest) over all logits of a pixel but the highest, by the second highest."""
    values = floats(x, (classes - 1) * stride + 1)
    second = -_INF
    for k in range(classes):
        if second < values[k * stride] < highest:
            second = values[k * stride]
    if second == -_INF:
        return second
    total = _ZERO
    for k in range(classes):
        if values[k * stride] < highest:
            total += exp(values[k * stride] - second)
    return second - highest + logarithm(total)


@compiled
def _pull(form: Any, classes: int, label: Any, maps: Any) -> None:
    """Write A and, in the place of log p, B of a gradient p A - [k = y] B - w_k ε/C g."""
    for p in range(label.size):
        slope = maps[_SLOPE + p]
        if form.code == FOCAL:
            slope = (
                slope * focal_slope(maps[_LOG_SUM + p] - maps[_OWN + p], form.gamma)
                if label[p] >= 0
                else _ZERO
            )
        maps[_PULL + p] = maps[_OWN + p] = slope
    if form.code == SMOOTHED:
        weight, total = floats(form.weight, classes), _ZERO
        for k in range(classes):
            total += weight[k]
        total *= form.smoothing / np.float32(classes)
        for p in range(label.size):
            slope = maps[_SLOPE + p]
            own = slope * (_ONE - form.smoothing) * weight[max(label[p], 0)]
            maps[_PULL + p], maps[_OWN + p] = own + slope * total, own


@compiled
def _slope_of_class(row: Any, label: Any, k: np.int32, spread: Any, maps: Any, place: Any) -> None:
    for p in range(label.size):
        prob = exp_or_zero(row[p] - maps[_HIGHEST + p] - maps[_LOG_SUM + p])
        own = maps[_OWN + p] if label[p] == k else _ZERO
        place[p] = prob * maps[_PULL + p] - spread * maps[_SLOPE + p] - own


@compiled
def _dual_gradient(
    form: Any, x: int, stride: int, classes: int, label: Any, maps: Any, gradient: int, gradient_stride: int
) -> None:
    """Write g (u_k - p_k Σ u), the slope put through the softmax."""
    _own(x, stride, classes, label, maps)
    _log_rest(x, stride, classes, label.size, maps)
    for p in range(label.size):
        own, rest, is_kept = maps[_OWN + p] - maps[_LOG_SUM + p], maps[_LOG_REST + p], label[p] >= 0
        maps[_GIVEN + p] = given(own, rest, form) if is_kept else _ZERO
        maps[_OWN + p] = dual_own_slope(own, rest, form) if is_kept else _ZERO
        # Of very small probabilities it would be too large a factor: they get theirs one by one.
        maps[_SHARE + p] = maps[_GIVEN + p] * exp(-rest) if rest > _LOG_TINY else _ZERO
        maps[_TOTAL + p] = _ZERO
    for k in range(classes):
        row = floats(x + 4 * k * stride, label.size)
        place = floats(gradient + 4 * k * gradient_stride, label.size)
        _dual_slope_of_class(form, row, label, np.int32(k), maps, place)
        if form.alpha != 0 and form.gamma != 1:
            _add_power_slope(form, row, label, np.int32(k), maps, place)
    for p in range(label.size):
        if (maps[_LOG_REST + p] <= _LOG_TINY) & (maps[_GIVEN + p] != 0):
            _give(x + 4 * p, stride, classes, p, maps, gradient + 4 * p, gradient_stride)
    for k in range(classes):
        row = floats(x + 4 * k * stride, label.size)
        place = floats(gradient + 4 * k * gradient_stride, label.size)
        for p in range(label.size):
            prob = exp_or_zero(row[p] - maps[_HIGHEST + p] - maps[_LOG_SUM + p])
            place[p] = maps[_SLOPE + p] * (place[p] - prob * maps[_TOTAL + p])


@compiled
def _dual_slope_of_class(form: Any, row: Any, label: Any, k: np.int32, maps: Any, place: Any) -> None:
    is_short = leaves_out(form)
    for p in range(label.size):
        log_prob = row[p] - maps[_HIGHEST + p] - maps[_LOG_SUM + p]
        prob, is_the_sure = exp_or_zero(log_prob), is_sure(log_prob, maps[_LOG_REST + p])
        other = prob * dual_slope(prob, is_the_sure & is_short, form)
        share = _ZERO if is_the_sure else prob * maps[_SHARE + p]
        u = (maps[_OWN + p] if label[p] == k else other) + share
        maps[_TOTAL + p] += u
        place[p] = u


@compiled
def _add_power_slope(form: Any, row: Any, label: Any, k: np.int32, maps: Any, place: Any) -> None:
    for p in range(label.size):
        log_prob = row[p] - maps[_HIGHEST + p] - maps[_LOG_SUM + p]
        u = form.alpha * form.gamma * exp_or_zero(form.gamma * log_prob)
        u = _ZERO if label[p] == k else u
        maps[_TOTAL + p] += u
        place[p] += u


@compiled
def _give(x: int, stride: int, classes: int, p: int, maps: Any, gradient: int, gradient_stride: int) -> None:
    """Give a pixel's classes but the sure one their shares."""
    row, place = floats(x, (classes - 1) * stride + 1), floats(gradient, (classes - 1) * gradient_stride + 1)
    for k in range(classes):
        if row[k * stride] < maps[_HIGHEST + p]:
            log_prob = row[k * stride] - maps[_HIGHEST + p] - maps[_LOG_SUM + p]
            share = exp_or_zero(log_prob - maps[_LOG_REST + p]) * maps[_GIVEN + p]
            place[k * gradient_stride] += share
            maps[_TOTAL + p] += share


@compiled
def _write_kept(maps: Any, first: int, label: Any, address: int) -> None:
    out = floats(address, label.size)
    for p in range(label.size):
        out[p] = maps[first + p] if label[p] >= 0 else _ZERO
