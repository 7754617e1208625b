"""Passes over a tile for the dual forms, each of which adds something up for all classes but the label."""

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
    wide,
)
from classbalance_losses.kernels.cpu.passes import (
    HIGHEST,
    INF,
    LOG_REST,
    LOG_SUM,
    OTHERS,
    OWN,
    SLOPE,
    TIES,
    TOTAL,
    VALUE,
    ZERO,
    Tile,
    clear,
    find_own,
    log_prob,
    row,
)
from classbalance_losses.kernels.forms.cpu import (
    dual_own_slope,
    dual_slope,
    dual_value,
    given,
    is_sure,
    joined,
    leaves_out,
    power,
)

_PRODUCT, _SPILT = OTHERS, TIES
_GIVEN, _SHARE = OTHERS, TIES
_SURE_SUM = np.float32(1 / 3)  # of the others' e^(x - max): below, the largest has a probability of 3/4
_TINY, _LOG_TINY = np.float32(1e-30), np.float32(np.log(1e-30))


@compiled
def make_dual_value(form: Any, x: Tile, label: Any, maps: Any) -> None:
    """Make φ of ℓ by what the other classes add."""
    _find_log_rest(x, maps)
    for first in (TOTAL, _PRODUCT, _SPILT):
        clear(first, x.size, maps)
    if form.b != 0:
        for k in range(x.classes):
            _multiply(form, row(x, k), label, np.int32(k), maps)
            if (k + 1) % form.together == 0 or k + 1 == x.classes:
                for p in range(x.size):
                    maps[TOTAL + p] += log1p(maps[_PRODUCT + p])
                    maps[_PRODUCT + p] = ZERO
    if form.alpha != 0 and form.gamma != 1:
        for k in range(x.classes):
            _add_powers(form, row(x, k), label, np.int32(k), maps)
    for p in range(x.size):
        room, spilt, rest = maps[TOTAL + p], maps[_SPILT + p], maps[LOG_REST + p]
        maps[VALUE + p] = dual_value(maps[VALUE + p], room, spilt, maps[OWN + p], rest, x.classes, form)


@compiled
def _multiply(form: Any, logit: Any, label: Any, k: np.int32, maps: Any) -> None:
    wide()
    is_short = leaves_out(form)
    for p in range(label.size):
        log_p, product = log_prob(logit, p, maps), maps[_PRODUCT + p]
        is_out = (label[p] == k) | (is_sure(log_p, maps[LOG_REST + p]) & is_short)
        maps[_PRODUCT + p] = product if is_out else joined(product, exp(log_p), form)


@compiled
def _add_powers(form: Any, logit: Any, label: Any, k: np.int32, maps: Any) -> None:
    wide()
    for p in range(label.size):
        spilt = power(log_prob(logit, p, maps), form.gamma)
        maps[_SPILT + p] += ZERO if label[p] == k else spilt


@compiled
def write_dual_gradient(form: Any, x: Tile, gradient: Tile, label: Any, maps: Any) -> None:
    """Write g (u_k - p_k Σ u), the slope put through the softmax."""
    wide()
    find_own(x, label, maps)
    _find_log_rest(x, maps)
    for p in range(x.size):
        own, rest, is_kept = maps[OWN + p] - maps[LOG_SUM + p], maps[LOG_REST + p], label[p] >= 0
        maps[_GIVEN + p] = given(own, rest, form) if is_kept else ZERO
        maps[OWN + p] = dual_own_slope(own, rest, form) if is_kept else ZERO
        # Of very small probabilities it would be too large a factor: they get theirs one by one.
        maps[_SHARE + p] = maps[_GIVEN + p] * exp(-rest) if rest > _LOG_TINY else ZERO
        maps[TOTAL + p] = ZERO
    for k in range(x.classes):
        _write_slope(form, row(x, k), label, np.int32(k), maps, row(gradient, k))
        if form.alpha != 0 and form.gamma != 1:
            _add_power_slope(form, row(x, k), label, np.int32(k), maps, row(gradient, k))
    for p in range(x.size):
        if (maps[LOG_REST + p] <= _LOG_TINY) & (maps[_GIVEN + p] != 0):
            _give(x, gradient, p, maps)
    for k in range(x.classes):
        logit, place = row(x, k), row(gradient, k)
        for p in range(x.size):
            prob = exp_or_zero(log_prob(logit, p, maps))
            place[p] = maps[SLOPE + p] * (place[p] - prob * maps[TOTAL + p])


@compiled
def _write_slope(form: Any, logit: Any, label: Any, k: np.int32, maps: Any, place: Any) -> None:
    wide()
    is_short = leaves_out(form)
    for p in range(label.size):
        log_p = log_prob(logit, p, maps)
        prob, is_the_sure = exp_or_zero(log_p), is_sure(log_p, maps[LOG_REST + p])
        other = prob * dual_slope(prob, is_the_sure & is_short, form)
        share = ZERO if is_the_sure else prob * maps[_SHARE + p]
        u = (maps[OWN + p] if label[p] == k else other) + share
        maps[TOTAL + p] += u
        place[p] = u


@compiled
def _add_power_slope(form: Any, logit: Any, label: Any, k: np.int32, maps: Any, place: Any) -> None:
    wide()
    for p in range(label.size):
        u = form.alpha * form.gamma * exp_or_zero(form.gamma * log_prob(logit, p, maps))
        u = ZERO if label[p] == k else u
        maps[TOTAL + p] += u
        place[p] += u


@compiled
def _give(x: Tile, gradient: Tile, p: int, maps: Any) -> None:
    """Give a pixel's classes but the sure one their shares."""
    for k in range(x.classes):
        logit, place = row(x, k), row(gradient, k)
        if logit[p] < maps[HIGHEST + p]:
            share = exp_or_zero(log_prob(logit, p, maps) - maps[LOG_REST + p]) * maps[_GIVEN + p]
            place[p] += share
            maps[TOTAL + p] += share


@compiled
def _find_log_rest(x: Tile, maps: Any) -> None:
    """Write log(1 - p) of a class that is nearly sure, by the sum of the others, and 0 where none is."""
    tiny = 0
    for p in range(x.size):
        s = maps[LOG_SUM + p]
        others = expm1(s)
        maps[LOG_REST + p] = logarithm(others) - s if others < _SURE_SUM else ZERO
        tiny += others < _TINY
    if tiny:
        for p in range(x.size):
            if expm1(maps[LOG_SUM + p]) < _TINY:
                maps[LOG_REST + p] = _log_sum_of_others(x, p, maps[HIGHEST + p])


@compiled
def _log_sum_of_others(x: Tile, p: int, highest: Any) -> Any:
    """Return log Σ e^(x - highest) over all logits of a pixel but the highest, by the second highest."""
    logits = floats(x.address + 4 * p, (x.classes - 1) * x.stride + 1)
    second, total = -INF, ZERO
    for k in range(x.classes):
        if second < logits[k * x.stride] < highest:
            second = logits[k * x.stride]
    if second == -INF:
        return second
    for k in range(x.classes):
        if logits[k * x.stride] < highest:
            total += exp(logits[k * x.stride] - second)
    return second - highest + logarithm(total)
