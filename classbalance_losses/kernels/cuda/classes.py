r"""Sums of a map over the pixels of each class, or of all under weights, and their gradients: one pass over maps each.

- Class sums: a warp takes a part of a row's pixels and eight classes. Each thread has sums of its own, of each class:
  nothing crosses threads before the end. A second kernel adds up the parts.
- Weighted sums: :math:`L = \frac{1}{Z} \sum_i w_{y_i} q_i \varphi_i` and :math:`Z = \sum_i w'_{y_i}`, in two kernels
  as well, the second of which divides.

Each sum has one order, whatever comes first.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from classbalance_losses.kernels import reference
from classbalance_losses.kernels.call import ClassSums, Hard, Labels, WeightedSums
from classbalance_losses.kernels.cuda import class_kernels as kernels
from classbalance_losses.kernels.cuda.common import Launch, define
from classbalance_losses.kernels.operators import by_reference
from classbalance_losses.kernels.plain import needs_reference

_GROUP = 8  # classes of a program
_ROUNDS = 8  # pixels whose loads a thread starts before it needs the first
_LANES = 32
_PARTS = 1024  # fixed: as many partial sums on every device
_JOINED = 1 << 13  # of them that a program adds up at once, at most
_ADDED = 256  # pixels that a thread adds up one after the other, at most, for each that it has at once
_SOME = 1 << 12  # a thread counts in one float: a pixel as 1, one that is in H in part as this
_WRITTEN = 1024  # pixels of a program that writes a map
_SUMMED = 512  # pixels that a program has at once which adds up under weights
ALL = (None, None, None)  # pixels count, not those of H


def class_sums(
    labels: Labels,
    value: Tensor | None = None,
    squared: Tensor | None = None,
    weight: Tensor | None = None,
    *,
    rows: int = 1,
    hard: Hard | None = None,
) -> ClassSums:
    """Return the sums of the float32 maps (N, *) that are given over the pixels of each row and class.

    Args:
        labels: The pixels that count, and their classes.
        value: A map, of whose sums there is a gradient.
        squared: A second map, constant, which is weighted by q².
        weight: q, floating-point and constant, or ``None`` for 1. A weight of 0 times an infinite value is 0.
        rows: R, into as many parts of one size the pixels are divided. Those of ``hard`` are as many.
        hard: Which pixels count in which part h, if not all do.
    """
    chosen = ALL if hard is None else hard
    function = CLASS_SUMS if value is None else _ClassSums.apply
    number, *sums = function(value, squared, *labels, rows, weight, *chosen)
    return ClassSums(number, None if value is None else sums[0], None if squared is None else sums[-1])


def weighted_sums(
    value: Tensor,
    labels: Labels,
    weight: Tensor | None,
    norm_weight: Tensor | None,
    pixel_weight: Tensor | None,
) -> WeightedSums:
    """Return Σ w_y q value over the pixels that count, Σ w'_y, and their quotient.

    Args:
        value: A float32 map (N, *).
        labels: The pixels that count, and their classes.
        weight: w (C,), floating-point and constant, or ``None`` for 1. A factor of 0 times an infinite value is 0.
        norm_weight: w' (C,), or ``None`` for 1.
        pixel_weight: q (N, *), floating-point and constant, or ``None`` for 1.
    """
    over_weight = norm_weight is not None and norm_weight is weight  # a graph takes no tensor twice
    weights = (weight, None if over_weight else norm_weight, pixel_weight)
    return WeightedSums(*_WeightedSums.apply(value, *labels, over_weight, *weights))  # type: ignore[no-untyped-call]


class _ClassSums(torch.autograd.Function):
    """Class sums, of which those of the map have a gradient: linear, so that it does not depend on the map."""

    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        squared: Tensor | None,
        target: Tensor,
        num_classes: int,
        ignore_index: int,
        rows: int,
        *factors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        number, values, *squares = CLASS_SUMS(
            value, squared, target, num_classes, ignore_index, rows, *factors
        )
        ctx.mark_non_differentiable(number, *squares)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(target, *factors)
        ctx.how = num_classes, ignore_index
        return number, values, *squares

    @staticmethod
    def backward(ctx: Any, _: Any, grad: Tensor | None, *__: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 10
        target, *factors = ctx.saved_tensors
        num_classes, ignore_index = ctx.how
        if needs_reference(grad):
            labels = Labels(target, num_classes, ignore_index)
            return reference.gradient_of_class_sums(grad, labels, *factors), *[None] * 9
        return _CLASS_SLOPES(grad, target, ignore_index, *factors), *[None] * 9


def _class_sums(
    value: Tensor | None,
    squared: Tensor | None,
    target: Tensor,
    num_classes: int,
    ignore_index: int,
    rows: int,
    *factors: Tensor | None,
) -> list[Tensor]:
    number, *tables = outputs = _tables(value, squared, target, num_classes, ignore_index, rows, *factors)
    if not target.numel() * rows:
        return [output.zero_() for output in outputs]
    parts, add, join = _class_launches(target.numel() // rows, num_classes, ignore_index, rows)
    counts = target.new_empty((rows * num_classes, parts), dtype=torch.int64)
    sums = target.new_empty((len(tables), rows * num_classes, parts), dtype=torch.float32)
    add(target.contiguous(), *read(value, squared, *factors), counts, sums)
    of_value, of_squared = None if value is None else tables[0], None if squared is None else tables[-1]
    join(counts, sums, factors[-1], number, of_value, of_squared)
    return outputs


@lru_cache(maxsize=1 << 10)
def _class_launches(
    pixels: int, num_classes: int, ignore_index: int, rows: int
) -> tuple[int, Launch, Launch]:
    """Return how many parts there are, what adds up each, and what adds these up."""
    blocks, cells = triton.cdiv(pixels, _LANES * _ROUNDS), rows * num_classes
    parts = min(blocks, max(_PARTS // rows, triton.cdiv(pixels, _LANES * _ADDED)))
    groups = triton.cdiv(num_classes, _GROUP)
    numbers = (pixels, num_classes, parts, groups, blocks, cells * parts, ignore_index)
    constants = (_GROUP, _ROUNDS, _LANES, _SOME)
    add = Launch(kernels.class_sums, rows * parts * groups, numbers, constants, num_warps=1)
    join = Launch(kernels.join_classes, cells, (num_classes, parts, cells * parts), (_PARTS,))
    return parts, add, join


def _tables(
    value: Tensor | None,
    squared: Tensor | None,
    target: Tensor,
    num_classes: int,
    ignore_index: int,
    rows: int,
    *factors: Tensor | None,
) -> list[Tensor]:
    """Return the tables (R, C) of numbers and of those sums that are asked."""
    dtypes = [torch.int64 if factors[-1] is None else torch.float32]
    dtypes += [torch.float32 for given in (value, squared) if given is not None]
    return [target.new_empty((rows, num_classes), dtype=dtype) for dtype in dtypes]


def _class_slopes(coefficient: Tensor, target: Tensor, ignore_index: int, *factors: Tensor | None) -> Tensor:
    slope = _map(target)
    if coefficient.numel() * target.numel():
        launch = _class_slope_launch(target.numel(), ignore_index, *coefficient.shape)
        launch(coefficient.contiguous(), target.contiguous(), *read(*factors), slope)
    return slope


@lru_cache(maxsize=1 << 10)
def _class_slope_launch(pixels: int, ignore_index: int, rows: int, num_classes: int) -> Launch:
    blocks = triton.cdiv(pixels // rows, _WRITTEN)
    numbers = (pixels // rows, num_classes, blocks, ignore_index)
    return Launch(kernels.class_slopes, rows * blocks, numbers, (_WRITTEN,))


class _WeightedSums(torch.autograd.Function):
    """The mean, the sum and the norm, the last of which has no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        target: Tensor,
        num_classes: int,
        ignore_index: int,
        over_weight: bool,
        *weights: Tensor | None,
    ) -> tuple[Tensor, ...]:
        sums = _WEIGHTED_SUMS(value, target, num_classes, ignore_index, over_weight, *weights)
        mean, total, norm = sums.unbind()
        ctx.mark_non_differentiable(norm)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(value, target, norm, *weights)
        ctx.how = num_classes, ignore_index, over_weight
        return mean, total, norm

    @staticmethod
    def backward(
        ctx: Any, of_mean: Tensor | None, of_total: Tensor | None, _: Any
    ) -> tuple[Tensor | None, ...]:
        value, target, norm, weight, norm_weight, pixel_weight = ctx.saved_tensors
        num_classes, ignore_index, over_weight = ctx.how
        grads = (of_mean, of_total)
        if not any(grad is not None and needs_reference(grad) for grad in grads):
            slope = _WEIGHTED_SLOPES(*grads, norm, target, num_classes, ignore_index, weight, pixel_weight)
            return slope, *[None] * 7

        def sums(value: Tensor) -> tuple[Tensor, ...]:
            labels, over = Labels(target, num_classes, ignore_index), weight if over_weight else norm_weight
            return reference.weighted_sums(value, labels, weight, over, pixel_weight)[:2]

        return by_reference(sums, value, grads), *[None] * 7


def _weighted_sums(
    value: Tensor,
    target: Tensor,
    num_classes: int,
    ignore_index: int,
    over_weight: bool,
    *weights: Tensor | None,
) -> Tensor:
    sums = new_sums(value)
    parts, add, join = _weighted_launches(target.numel(), num_classes, ignore_index)
    partial = value.new_empty((parts, 2))
    weight, norm_weight, pixel_weight = read(*weights)
    norm_weight = weight if over_weight else norm_weight
    add(value.contiguous(), target.contiguous(), weight, norm_weight, pixel_weight, partial)
    join(partial, sums)
    return sums


@lru_cache(maxsize=1 << 10)
def _weighted_launches(pixels: int, num_classes: int, ignore_index: int) -> tuple[int, Launch, Launch]:
    """Return how many parts there are, what adds up each, and what adds these up."""
    blocks = triton.cdiv(pixels, _SUMMED)
    parts = min(blocks, max(_PARTS, triton.cdiv(blocks, _ADDED)))
    numbers = (pixels, num_classes, parts, blocks, ignore_index)
    add = Launch(kernels.weighted_sums, parts, numbers, (_SUMMED,))
    return parts, add, join_of(parts)


@lru_cache(maxsize=1 << 10)
def join_of(parts: int) -> Launch:
    """Return what adds up parts of weighted sums, and divides."""
    block = min(max(triton.next_power_of_2(parts), _PARTS), _JOINED)
    return Launch(kernels.join_weighted, 1, (parts,), (block,), num_warps=max(block // 256, 1))


def new_sums(value: Tensor, *_: object) -> Tensor:
    """Make the mean, the sum and the norm."""
    return value.new_empty(3, dtype=torch.float32)


def _weighted_slopes(
    of_mean: Tensor | None,
    of_total: Tensor | None,
    norm: Tensor,
    target: Tensor,
    num_classes: int,
    ignore_index: int,
    weight: Tensor | None,
    pixel_weight: Tensor | None,
) -> Tensor:
    slope = _map(target)
    launch = _weighted_slope_launch(target.numel(), num_classes, ignore_index)
    launch(norm, of_mean, of_total, *read(target, weight, pixel_weight), slope)
    return slope


@lru_cache(maxsize=1 << 10)
def _weighted_slope_launch(pixels: int, num_classes: int, ignore_index: int) -> Launch:
    numbers = (pixels, num_classes, ignore_index)
    return Launch(kernels.weighted_slopes, triton.cdiv(pixels, _WRITTEN), numbers, (_WRITTEN,))


def _map(target: Tensor) -> Tensor:
    return target.new_empty(target.shape, dtype=torch.float32)


def read(*maps: Tensor | None) -> list[Tensor | None]:
    """Return what there is as kernels read it."""
    return [None if values is None else values.contiguous() for values in maps]


HARD = "Tensor? ranked, Tensor? bits, Tensor? share"
CLASS_SUMS = define(
    "cuda_class_sums(Tensor? value, Tensor? squared, Tensor target, int num_classes, int ignore_index, "
    f"SymInt rows, Tensor? weight, {HARD}) -> Tensor[]",
    _class_sums,
    _tables,
)
_CLASS_SLOPES = define(
    f"cuda_class_slopes(Tensor coefficient, Tensor target, int ignore_index, Tensor? weight, {HARD}) -> Tensor",
    _class_slopes,
    lambda coefficient, target, *_: _map(target),
)
_WEIGHTED_SUMS = define(
    "cuda_weighted_sums(Tensor value, Tensor target, int num_classes, int ignore_index, bool over_weight, "
    "Tensor? weight, Tensor? norm_weight, Tensor? pixel_weight) -> Tensor",
    _weighted_sums,
    new_sums,
)
_WEIGHTED_SLOPES = define(
    "cuda_weighted_slopes(Tensor? of_mean, Tensor? of_total, Tensor norm, Tensor target, int num_classes, "
    "int ignore_index, Tensor? weight, Tensor? pixel_weight) -> Tensor",
    _weighted_slopes,
    lambda of_mean, of_total, norm, target, *_: _map(target),
)
