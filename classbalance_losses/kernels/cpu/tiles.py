r"""What the pixel pass does with a tile, in memory or made on the way: values and overlap, gradient, sums of errors.

The number of a tile's pixels is the size of ``label``, at most ``PITCH``, whose labels `labels.classes_of` makes. Of a
job, which may have more, they need ``NUMBERS`` and the addresses of ``FIELDS``, 0 where nothing is given or asked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from classbalance_losses.kernels.cpu.class_cells import COLUMNS, add_pixels, scale
from classbalance_losses.kernels.cpu.dual_passes import make_dual_value, write_dual_gradient
from classbalance_losses.kernels.cpu.hardest import COUNTS, KEPT, add_hardest
from classbalance_losses.kernels.cpu.labels import classes_of
from classbalance_losses.kernels.cpu.math import (
    compiled,
    doubles,
    exp,
    exp_or_zero,
    floats,
    step,
    wide,
    words,
)
from classbalance_losses.kernels.cpu.memory import Field
from classbalance_losses.kernels.cpu.overlap import (
    add_overlap,
    add_overlap_gradient,
    find_share,
    pull_overlap,
    write_overlap_slope,
)
from classbalance_losses.kernels.cpu.pairs import (
    add_pair_overlap,
    backward_pair,
    find_margin,
    forward_pair,
    write_pair,
)
from classbalance_losses.kernels.cpu.passes import (
    GIVEN,
    HIGHEST,
    INF,
    LOG_REST,
    LOG_SUM,
    NOTHING,
    ONE,
    OTHERS,
    OWN,
    PULL,
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
from classbalance_losses.kernels.cpu.slopes import find_slope, map_at, take_hard
from classbalance_losses.kernels.forms.cpu import (
    CROSS_ENTROPY,
    DUAL_CROSS_ENTROPY,
    FOCAL,
    NO_FORM,
    SMOOTHED,
    focal_slope,
    focal_value,
    read,
)

__all__ = ["FIELDS", "NUMBERS", "complete", "find_log_sum", "is_pair", "map_at", "take_tile", "write_kept"]

NUMBERS = (
    *("taken", "images", "pixels", "parts"),  # pixels of an image, parts of all for threads to take
    *("channels", "classes"),  # one channel of two classes: single logits
    *("label", "label_bytes", "ignored", "squared", "with_error"),
    *("lanes", "cells"),  # of the sums of classes
    "rows",  # of H, as many as images or one
    "room",  # for pixels near H's threshold, in each part
)
_MAP = Field(torch.float32, ("images", "pixels"))
FIELDS = {
    "bias": Field(torch.float32, ("classes",)),
    "pixel_weight": _MAP,  # q
    # What is kept, log Σ e^(x - max): not finite where a logit is NaN or infinite upwards.
    "log_sum": _MAP,
    "value": _MAP,
    "error": _MAP,
    "overlap": Field(torch.float64, ("parts", 2, "classes")),
    "sums": Field(torch.float64, ("parts", "classes", "classes")),
    "class_sums": Field(torch.float64, ("parts", "lanes", "cells", COLUMNS)),
    # Of H without a map, the bounds of its threshold, above which class sums are, counts, and what lies between:
    "bounds": Field(torch.int32, (2,)),
    "hardest": Field(torch.float64, ("parts", COUNTS)),
    "kept": Field(torch.float32, ("parts", KEPT, "room")),
    # The gradients of the value, of its sums and of the overlap:
    "slope": _MAP,
    "coefficient": Field(torch.float32, ("classes",)),
    **{
        "ranked": _MAP,
        "threshold": Field(torch.int64, ("rows",)),
        "tied_share": Field(torch.float32, ("rows",)),
    },
    "overlap_slope": Field(torch.float32, ("images", 2, "classes")),
}

_APART = 4  # neighbours whose errors are added to other sums


@step
def take_tile(
    job: Any, x: Tile, gradient: Tile, label: Any, maps: Any, image: int, pixel: int, part: int
) -> None:
    """Do what a job asks for with a tile, whose first pixel is counted from that of all images."""
    classes_of(job.label, job.label_bytes, pixel, job.ignored, job.classes, label)
    complete(job, x)
    if job.sums:
        sums = doubles(job.sums + 8 * part * job.classes * job.classes, job.classes * job.classes)
        _add_errors(x, label, maps, map_at(job.pixel_weight, pixel), job.squared, sums)
    elif job.gradient:
        _backward_tile(job, x, gradient, label, maps, image, pixel)
    else:
        _forward_tile(job, x, gradient, label, maps, pixel, part)


@compiled
def complete(job: Any, x: Tile) -> None:
    """Write class 0 of single logits, and add a bias: they are in a thread's room, in this case."""
    if x.classes < job.classes:  # they are read as they are
        return
    if job.channels < job.classes:
        clear_row(row(x, 0))
    bias = floats(job.bias, job.classes if job.bias else 0)
    for k in range(bias.size):
        logit, b = row(x, k), bias[k]
        for p in range(x.size):
            logit[p] += b


@compiled
def clear_row(values: Any) -> None:
    for p in range(values.size):
        values[p] = ZERO


@compiled
def is_pair(job: Any) -> Any:
    """Whether the passes of two classes do, which read single logits as they are."""
    is_theirs = (job.form.code == CROSS_ENTROPY) | (job.form.code == FOCAL) | (job.form.code == NO_FORM)
    return (job.classes == 2) & is_theirs & (job.sums == 0)


@step
def _forward_tile(job: Any, x: Tile, powers: Tile, label: Any, maps: Any, pixel: int, part: int) -> None:
    """Write φ of each pixel and, if asked, of cross-entropy ‖p - e_y‖², 0 where ignored, or their sums; s of all."""
    if is_pair(job):
        find_margin(x, job.bias, label, maps)
        forward_pair(job.form, label, job.with_error != 0, maps)
    else:
        _forward(read(job.form), x, powers if job.overlap else NOTHING, label, job.with_error != 0, maps)
    write_kept(maps, VALUE, label, map_at(job.value, pixel))
    write_kept(maps, TIES, label, map_at(job.error, pixel))
    if job.log_sum:
        out = floats(map_at(job.log_sum, pixel), label.size)
        for p in range(label.size):
            out[p] = maps[LOG_SUM + p]
    if job.hardest:
        add_hardest(job, label, map_at(job.pixel_weight, pixel), part, maps)
    elif job.class_sums:
        _add_to_classes(job, label, map_at(job.pixel_weight, pixel), maps, part)
    if job.overlap:
        find_share(label, map_at(job.pixel_weight, pixel), maps)
        sums = doubles(job.overlap + 16 * part * job.classes, 2 * job.classes)
        if is_pair(job):
            add_pair_overlap(label, maps, sums)
        else:
            add_overlap(powers, label, maps, sums)


@compiled
def _add_to_classes(job: Any, label: Any, weight: int, maps: Any, part: int) -> None:
    """Add 1, q φ and, if asked, q² ‖p - e_y‖² to a part's sums of each class."""
    none, squared = maps[:0], label.size if job.with_error else 0
    values, squares = maps[VALUE : VALUE + label.size], maps[TIES : TIES + squared]
    if weight:
        q, ones = floats(weight, label.size), maps[SLOPE : SLOPE + label.size]
        weighted, twice = maps[OTHERS : OTHERS + label.size], maps[LOG_REST : LOG_REST + squared]
        for p in range(ones.size):
            ones[p] = ONE
        scale(values, q, ones, none, ONE, weighted)
        scale(squares, q, q, none, ONE, twice)
        values, squares = weighted, twice
    sums = job.class_sums + 8 * COLUMNS * part * job.lanes * job.cells
    add_pixels(label, none, values, squares, sums, job.lanes, job.classes)


@compiled
def _forward(form: Any, x: Tile, powers: Tile, label: Any, with_error: bool, maps: Any) -> None:
    wide()
    find_largest(x, maps)
    find_own(x, label, maps)
    if form.code >= DUAL_CROSS_ENTROPY:
        sum_beside_largest(x, powers, maps)
    else:
        sum_beside_label(x, powers, label, with_error, maps)
    for p in range(x.size):
        maps[OWN + p] -= maps[LOG_SUM + p]
        maps[VALUE + p] = -maps[OWN + p]
    if form.code == FOCAL:
        for p in range(x.size):
            maps[VALUE + p] = focal_value(maps[VALUE + p], form.gamma, False)
    elif form.code == SMOOTHED:
        _smooth(form, x, label, maps)
    elif form.code >= DUAL_CROSS_ENTROPY:
        make_dual_value(form, x, label, maps)


@step
def _backward_tile(job: Any, x: Tile, gradient: Tile, label: Any, maps: Any, image: int, pixel: int) -> None:
    """Write the gradient, in other memory than the logits', by slopes of pixels and of the overlap; 0 where ignored."""
    find_slope(job, label, image, pixel, maps)
    is_found_again = (job.threshold != 0) & (job.ranked == 0)  # H, by φ
    slopes = floats(job.overlap_slope + 8 * image * job.classes, 2 * job.classes if job.overlap_slope else 0)
    if job.overlap_slope:
        find_share(label, map_at(job.pixel_weight, pixel), maps)
    if is_pair(job):
        find_margin(x, job.bias, label, maps)
        if is_found_again:
            forward_pair(job.form, label, False, maps)
            take_hard(job, words(np.int64(maps.ctypes.data) + 4 * VALUE, label.size), 0, maps)
        backward_pair(job.form, label, slopes, maps)
        write_pair(gradient, label, maps)
        return
    find_largest(x, maps)
    find_log_sum(x, map_at(job.log_sum, pixel), maps)
    if is_found_again:
        find_own(x, label, maps)
        for p in range(label.size):
            maps[VALUE + p] = maps[LOG_SUM + p] - maps[OWN + p]
        take_hard(job, words(np.int64(maps.ctypes.data) + 4 * VALUE, label.size), 0, maps)
    for p in range(label.size):
        s = maps[LOG_SUM + p]
        # NaN where s is, for what is then multiplied by it are numbers: exp_or_zero makes them.
        maps[SLOPE + p] = maps[GIVEN + p] + (s - s) if label[p] >= 0 else ZERO
    _backward(read(job.form), x, gradient, label, slopes, maps)


@compiled
def find_log_sum(x: Tile, kept: int, maps: Any) -> None:
    """Write s, which is found again if it is not kept."""
    if kept:
        log_sum = floats(kept, x.size)
        for p in range(x.size):
            maps[LOG_SUM + p] = log_sum[p]
    else:
        sum_beside_largest(x, NOTHING, maps)


@compiled
def _backward(form: Any, x: Tile, gradient: Tile, label: Any, slopes: Any, maps: Any) -> None:
    wide()
    if form.code >= DUAL_CROSS_ENTROPY:
        write_dual_gradient(form, x, gradient, label, maps)
        if slopes.size:
            add_overlap_gradient(x, gradient, label, slopes, maps)
        return
    weight = floats(form.weight, x.classes if form.code == SMOOTHED else 0)
    if form.code == FOCAL:
        find_own(x, label, maps)
        for p in range(x.size):
            slope = focal_slope(maps[LOG_SUM + p] - maps[OWN + p], form.gamma, False)
            maps[SLOPE + p] = maps[SLOPE + p] * slope if label[p] >= 0 else ZERO
    _pull(form, weight, label, maps)
    if slopes.size:
        pull_overlap(x, gradient, label, slopes, maps)
    for k in range(x.classes):
        spread = form.smoothing / np.float32(x.classes) * weight[k] if weight.size else ZERO
        if slopes.size:
            write_overlap_slope(row(gradient, k), label, np.int32(k), spread, slopes[k], maps)
        else:
            _slope_of_class(row(x, k), label, np.int32(k), spread, maps, row(gradient, k))


@compiled
def _add_errors(x: Tile, label: Any, maps: Any, weight: int, squared: int, sums: Any) -> None:
    """Add p_k - [k = y], times a weight of each pixel if given, or its square, to float64 sums of (k, y)."""
    weights = floats(weight, label.size)
    find_largest(x, maps)
    sum_beside_largest(x, NOTHING, maps)
    for p in range(label.size):
        maps[SLOPE + p] = weights[p] if weight else ONE
    # Neighbours, which often have one label, are added apart: none waits for the other. The last is for the ignored.
    apart = np.empty((x.classes + 1, _APART), np.float64)
    for k in range(x.classes):
        logit = row(x, k)
        for p in range(label.size):
            prob = exp(log_prob(logit, p, maps))
            delta = prob - ONE if label[p] == np.int32(k) else prob
            maps[TOTAL + p] = delta * delta if squared else delta * maps[SLOPE + p]
        apart[:] = 0
        for p in range(label.size):
            apart[label[p] if label[p] >= 0 else x.classes, p % _APART] += maps[TOTAL + p]
        for y in range(x.classes):
            for i in range(_APART):
                sums[k * x.classes + y] += apart[y, i]


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
        maps[PULL + p], maps[OWN + p] = own + slope * total, own


@compiled
def _slope_of_class(logit: Any, label: Any, k: np.int32, spread: Any, maps: Any, place: Any) -> None:
    wide()
    for p in range(label.size):
        own = maps[OWN + p] if label[p] == k else ZERO
        pulled = exp_or_zero(log_prob(logit, p, maps)) * maps[PULL + p]
        place[p] = pulled - spread * maps[SLOPE + p] - own


@compiled
def write_kept(maps: Any, first: int, label: Any, address: int) -> None:
    """Write a map, 0 where ignored, to an address if there is one."""
    out = floats(address, label.size if address else 0)
    values = maps[
        first : first + out.size
    ]  # whose places are known not to be counted from the end: 10 times as quick
    for p in range(out.size):
        value = values[p]
        out[p] = value if label[p] >= 0 else ZERO
