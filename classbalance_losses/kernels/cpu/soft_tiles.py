"""What the pass over label vectors does with a tile: values, sums of classes, gradient. Vectors lie as logits do.

Each class of a pixel has φ of its own cross-entropy, -log p_c, in the share t_c. Pixels that have no share of any
class, or none in H, do not count: they have -1 for a label, and others 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from classbalance_losses.kernels.cpu.math import compiled, doubles, exp, floats, summing, wide
from classbalance_losses.kernels.cpu.memory import Field
from classbalance_losses.kernels.cpu.passes import (
    GIVEN,
    INF,
    LOG_REST,
    LOG_SUM,
    NOTHING,
    ONE,
    OTHERS,
    OWN,
    SHARE,
    SLOPE,
    TIES,
    TOTAL,
    VALUE,
    ZERO,
    Tile,
    clear,
    find_largest,
    log_prob,
    row,
    sum_beside_largest,
)
from classbalance_losses.kernels.cpu.tiles import complete, find_log_sum, map_at, write_kept
from classbalance_losses.kernels.forms.cpu import FOCAL, SQUARE, focal_slope, focal_value, read

COLUMNS = 3  # of the sums of a class: shares, values, squared errors
FIELDS = {
    "class_weight": Field(torch.float32, ("classes",)),  # w
    "hard_share": Field(torch.float32, ("images", "pixels")),  # h
    "soft_sums": Field(torch.float64, ("parts", "classes", COLUMNS)),
    "soft_slope": Field(torch.float32, ("images", "classes")),  # of the sums of values
}

_PHI, _SQUARES, _SCALE = (
    OWN,
    LOG_REST,
    SLOPE,
)  # of a class φ, or its slope; Σ e^2(x - max), and what makes it Σ p²
_TWO = np.float32(2)


@compiled
def take_soft_tile(
    job: Any,
    x: Tile,
    shares: Tile,
    gradient: Tile,
    spare: Tile,
    label: Any,
    maps: Any,
    image: int,
    pixel: int,
    part: int,
) -> None:
    """Write values, or add to the sums of classes, or write the gradient.

    ``spare`` is room for powers of e forward, if errors are asked for, and for slopes of focal backward.
    """
    form = read(job.form)
    complete(job, x)
    find_largest(x, maps)
    _find_factors(job, shares, label, pixel, maps)
    if job.gradient:
        find_log_sum(x, map_at(job.log_sum, pixel), maps)
        _write_gradient(form, x, shares, _weights(job, image), gradient, spare, label, maps)
        return
    powers = spare if job.with_error else NOTHING
    if job.has_log_sum:
        find_log_sum(x, map_at(job.log_sum, pixel), maps)
    else:
        sum_beside_largest(x, powers, maps)
        if job.log_sum:
            kept = floats(map_at(job.log_sum, pixel), x.size)
            for p in range(x.size):
                kept[p] = maps[LOG_SUM + p]
    if job.value:
        _make_values(form, x, shares, _weights(job, image), maps)
        write_kept(maps, VALUE, label, map_at(job.value, pixel))
    if job.soft_sums:
        size = COLUMNS * x.classes
        _add_to_classes(form, x, shares, powers, label, maps, doubles(job.soft_sums + 8 * size * part, size))


@compiled
def _weights(job: Any, image: int) -> Any:
    """Return w of each class, or the slope of its sum; of none the array is empty."""
    if job.soft_slope:
        return floats(job.soft_slope + 4 * image * job.classes, job.classes)
    return floats(job.class_weight, job.classes if job.class_weight else 0)


@compiled
def _find_factors(job: Any, shares: Tile, label: Any, pixel: int, maps: Any) -> None:
    """Write h of each pixel, and q h or the slope of its value, and which count."""
    label[:] = -1
    for k in range(shares.classes):
        share = row(shares, k)
        for p in range(share.size):
            label[p] = np.int32(0) if share[p] != ZERO else label[p]
    hard = floats(map_at(job.hard_share, pixel), label.size)
    given = job.slope if job.slope else job.pixel_weight
    factor = floats(map_at(given, pixel), label.size)
    for p in range(label.size):
        h = hard[p] if job.hard_share else ONE
        label[p] = label[p] if h != ZERO else np.int32(-1)
        maps[SHARE + p] = h
        maps[GIVEN + p] = h * factor[p] if given else h


@compiled
def _find_values(form: Any, logit: Any, maps: Any) -> None:
    """Write φ of a class."""
    wide()
    for p in range(logit.size):
        maps[_PHI + p] = -log_prob(logit, p, maps)
    if form.code == FOCAL and form.gamma == SQUARE:
        for p in range(logit.size):
            maps[_PHI + p] = focal_value(maps[_PHI + p], form.gamma, True)
    elif form.code == FOCAL:
        for p in range(logit.size):
            maps[_PHI + p] = focal_value(maps[_PHI + p], form.gamma, False)


@compiled
def _make_values(form: Any, x: Tile, shares: Tile, weight: Any, maps: Any) -> None:
    """Write Σ w t φ."""
    clear(VALUE, x.size, maps)
    for k in range(x.classes):
        _find_values(form, row(x, k), maps)
        w, share = weight[k] if weight.size else ONE, row(shares, k)
        for p in range(x.size):
            part, value = w * share[p], maps[_PHI + p]
            maps[VALUE + p] += ZERO if (part == ZERO) & (value == INF) else part * value


@compiled
def _add_to_classes(form: Any, x: Tile, shares: Tile, powers: Tile, label: Any, maps: Any, sums: Any) -> None:
    """Add Σ h t, Σ h q t φ and, of powers e^(x - max), Σ (h q t)² ‖p - e_c‖² to float64 sums of each class."""
    if powers.size:
        _add_squares(powers, maps)
    for k in range(x.classes):
        first, share = COLUMNS * k, row(shares, k)
        _find_values(form, row(x, k), maps)
        sums[first] += _number(share, label, maps)
        sums[first + 1] += _value(share, label, maps)
        if powers.size:
            sums[first + 2] += _squared(row(powers, k), share, label, maps)


@summing
def _number(share: Any, label: Any, maps: Any) -> Any:
    wide()
    total = ZERO
    for p in range(share.size):
        total += maps[SHARE + p] * share[p] if label[p] >= 0 else ZERO
    return np.float64(total)


@summing
def _value(share: Any, label: Any, maps: Any) -> Any:
    wide()
    total = ZERO
    for p in range(share.size):
        part, value = maps[GIVEN + p] * share[p], maps[_PHI + p]
        is_none = (label[p] < 0) | ((part == ZERO) & (value == INF))
        total += ZERO if is_none else part * value
    return np.float64(total)


@compiled
def _add_squares(powers: Tile, maps: Any) -> None:
    """Write Σ p_k² without its factor, and without the largest's part if that is one class."""
    wide()
    clear(_SQUARES, powers.size, maps)
    for k in range(powers.classes):
        power = row(powers, k)
        for p in range(power.size):
            maps[_SQUARES + p] += ZERO if power[p] == ONE else power[p] * power[p]
    for p in range(powers.size):
        maps[_SCALE + p] = ONE / (maps[OTHERS + p] + maps[TIES + p])


@summing
def _squared(power: Any, share: Any, label: Any, maps: Any) -> Any:
    """Return Σ (h q t)² ‖p - e_c‖², where of the largest Σ p_k² + (Σ p_k)² over the others subtracts nothing."""
    wide()
    total = ZERO
    for p in range(power.size):
        scale, part = maps[_SCALE + p], maps[GIVEN + p] * share[p]
        others, squares, ties = maps[OTHERS + p] * scale, maps[_SQUARES + p], maps[TIES + p]
        of_others = squares * scale * scale + others * others
        of_all = (squares + ties) * scale * scale + (ONE - _TWO * (power[p] * scale))
        error = of_others if (power[p] == ONE) & (ties == ONE) else of_all
        total += part * part * error if label[p] >= 0 else ZERO
    return np.float64(total)


@compiled
def _write_gradient(
    form: Any, x: Tile, shares: Tile, weight: Any, gradient: Tile, slopes: Tile, label: Any, maps: Any
) -> None:
    """Write g (p_k Σ u - u_k), u_c = w_c t_c φ'(-log p_c)."""
    clear(TOTAL, x.size, maps)
    for k in range(x.classes):
        w, share = weight[k] if weight.size else ONE, row(shares, k)
        if form.code == FOCAL:
            _find_slope(form, row(x, k), share, w, row(gradient, k), row(slopes, k), maps)
        else:
            for p in range(share.size):
                maps[TOTAL + p] += w * share[p]
    for k in range(x.classes):
        if form.code == FOCAL:
            _write_found(row(slopes, k), label, maps, row(gradient, k))
        else:
            _write_slope(
                row(x, k), row(shares, k), weight[k] if weight.size else ONE, label, maps, row(gradient, k)
            )


@compiled
def _find_slope(form: Any, logit: Any, share: Any, w: Any, prob: Any, slope: Any, maps: Any) -> None:
    """Write p and u of a class of focal, which have an exponential in common."""
    wide()
    if form.gamma == SQUARE:
        for p in range(logit.size):
            log_p = log_prob(logit, p, maps)
            prob[p], slope[p] = exp(log_p), w * share[p] * focal_slope(-log_p, form.gamma, True)
    else:
        for p in range(logit.size):
            log_p = log_prob(logit, p, maps)
            prob[p], slope[p] = exp(log_p), w * share[p] * focal_slope(-log_p, form.gamma, False)
    for p in range(logit.size):
        maps[TOTAL + p] += slope[p]


@compiled
def _write_found(slope: Any, label: Any, maps: Any, place: Any) -> None:
    for p in range(slope.size):
        pulled = place[p] * maps[TOTAL + p] - slope[p]
        place[p] = maps[GIVEN + p] * pulled if label[p] >= 0 else ZERO


@compiled
def _write_slope(logit: Any, share: Any, w: Any, label: Any, maps: Any, place: Any) -> None:
    wide()
    for p in range(logit.size):
        pulled = exp(log_prob(logit, p, maps)) * maps[TOTAL + p] - w * share[p]
        place[p] = maps[GIVEN + p] * pulled if label[p] >= 0 else ZERO
