"""Sums over the pixels of each class on a CPU, and their gradient: one pass over the maps each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classbalance_losses.kernels import reference
from classbalance_losses.kernels.call import NARROW, ClassSums, Hard, Labels, WeightedSums
from classbalance_losses.kernels.cpu import map_loops as loops
from classbalance_losses.kernels.cpu.class_cells import COLUMNS, lanes_for
from classbalance_losses.kernels.cpu.memory import hand_over, hand_over_labels
from classbalance_losses.kernels.cpu.threads import run
from classbalance_losses.kernels.operators import define
from classbalance_losses.kernels.plain import needs_reference
from classbalance_losses.kernels.reference import over_classes

_FACTORS = ("weight", "ranked", "bits", "share")  # of a pixel: q, and what h follows from
# Pixels that other threads take off this one: for fewer, to wake and await them takes longer where cores are busy.
_WORTH_A_THREAD = 3 << 16
_ALL = (None, None, None)  # pixels count, not those of H


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
        weight: q, float32 and constant, or ``None`` for 1. A weight of 0 times an infinite value is 0.
        rows: R, into as many parts of one size the pixels are divided. Those of ``hard`` are as many.
        hard: Which pixels count in which part h, if not all do.
    """
    function = _class_sums if value is None else _ClassSums.apply
    chosen = _ALL if hard is None else hard
    number, values, squares = function(value, squared, *labels, rows, weight, *chosen)
    return ClassSums(number, None if value is None else values, None if squared is None else squares)


def weighted_sums(
    value: Tensor,
    labels: Labels,
    weight: Tensor | None,
    norm_weight: Tensor | None,
    pixel_weight: Tensor | None,
) -> WeightedSums:
    """Return Σ w_y q value over the pixels that count, Σ w'_y, and their quotient, all from sums of each class.

    Args:
        value: A float32 map (N, *).
        labels: The pixels that count, and their classes.
        weight: w (C,), or ``None`` for 1. A factor of 0 times an infinite value is 0.
        norm_weight: w' (C,), or ``None`` for 1.
        pixel_weight: q (N, *), float32 and constant, or ``None`` for 1.
    """
    (number,), (sums,), _ = _ClassSums.apply(value, None, *labels, 1, pixel_weight, *_ALL)  # type: ignore[no-untyped-call]
    return over_classes(number, sums, weight, norm_weight)


def shares_of(labels: Labels, hard: Hard) -> Tensor:
    """Return h of each pixel (N, *), 0 where it is not in H: what a sum over H gives for a slope of 1."""
    one = torch.ones(hard.bits.shape[0], labels.num_classes, dtype=torch.float32, device="cpu")
    share: Tensor = _class_slopes(one, labels.target, labels.ignore_index, None, *hard)
    return share


def labels_outside(target: Tensor, num_classes: int, ignore_index: int) -> int:
    """Return how many labels are neither a class nor ignored."""
    return _checked(Labels(target, num_classes, ignore_index), None)


def narrowed(labels: Labels) -> tuple[int, Labels]:
    """Return how many labels are neither a class nor ignored, and the labels as bytes, which several passes read."""
    target, num_classes, _ = labels
    if target.dtype == torch.uint8 or num_classes > NARROW:
        return _checked(labels, None), labels
    narrow = torch.empty(target.shape, dtype=torch.uint8, device="cpu")
    return _checked(labels, narrow), Labels(narrow, num_classes, NARROW)


def _checked(labels: Labels, narrow: Tensor | None) -> int:
    total = torch.zeros(1, dtype=torch.int64, device="cpu")
    run_on_maps(loops.labels_outside, labels, 1, {"outside": total, "narrow": narrow})
    return int(total)


def run_on_maps(
    task: Any, labels: Labels, rows: int, tensors: Mapping[str, Tensor | None], **numbers: int
) -> None:
    """Run a task of `map_loops` on rows of pixels, on tensors that have to be what its ``FIELDS`` says, and numbers."""
    job = np.zeros(1, loops.JOB)
    pixels, parts = _sizes(labels, rows)
    sizes = {"rows": rows, "pixels": pixels, "parts": parts, "classes": labels.num_classes}
    for name, number in {**sizes, **numbers}.items():
        job[name] = number
    target = labels.target.contiguous()
    laid_out = {name: values.contiguous() for name, values in tensors.items() if values is not None}
    hand_over_labels(job, target, labels.ignore_index, (rows, pixels))
    hand_over(job, loops.FIELDS, laid_out)
    threads = torch.get_num_threads()
    if rows * pixels * (threads - 1) < _WORTH_A_THREAD * threads:
        task.compiled.ctypes(job.ctypes.data)
    else:
        run(task, job)


def _sizes(labels: Labels, rows: int) -> tuple[int, int]:
    """Return how many pixels, and how many parts, a row has."""
    pixels = labels.target.numel() // rows if rows else 0
    return pixels, -(-pixels // loops.PART)


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
    ) -> tuple[Tensor, Tensor, Tensor]:
        sums: tuple[Tensor, Tensor, Tensor] = _class_sums(
            value, squared, target, num_classes, ignore_index, rows, *factors
        )
        ctx.mark_non_differentiable(sums[0], sums[2])
        ctx.save_for_backward(target, *factors)
        ctx.num_classes, ctx.ignore_index = num_classes, ignore_index
        return sums

    @staticmethod
    def backward(ctx: Any, _: Any, grad: Tensor, __: Any) -> tuple[Tensor | None, ...]:
        target, *factors = ctx.saved_tensors
        if needs_reference(grad):
            labels = Labels(target, ctx.num_classes, ctx.ignore_index)
            gradient = reference.gradient_of_class_sums(grad, labels, *factors)
        else:
            gradient = _class_slopes(grad, target, ctx.ignore_index, *factors)
        return gradient, *[None] * 9


def _run_class_sums(
    value: Tensor | None,
    squared: Tensor | None,
    target: Tensor,
    num_classes: int,
    ignore_index: int,
    rows: int,
    *factors: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    labels, cells = Labels(target, num_classes, ignore_index), num_classes + 1
    pixels, parts = _sizes(labels, rows)
    lanes = lanes_for(min(pixels, loops.PART), num_classes)
    # Zeros of numpy's are not written by other threads, which it takes time to wake.
    table = torch.from_numpy(np.zeros((rows, parts * lanes, cells, COLUMNS)))
    tensors = {"value": value, "squared": squared, **dict(zip(_FACTORS, factors, strict=True)), "sums": table}
    run_on_maps(loops.class_sums, labels, rows, tensors, cells=cells, lanes=lanes)
    with np.errstate(invalid="ignore"):  # inf - inf
        sums = table.numpy()[:, :, 1:].sum(1)
    whole, tied, values, squares = torch.from_numpy(sums).unbind(-1)
    number, share = whole.to(torch.int64), factors[-1]
    if share is not None:
        number = whole.to(torch.float32) + share.unsqueeze(1) * tied.to(torch.float32)
    return number, values.to(torch.float32), squares.to(torch.float32)


def _fake_class_sums(
    value: Tensor | None,
    squared: Tensor | None,
    target: Tensor,
    num_classes: int,
    ignore_index: int,
    rows: int,
    *factors: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    def table(dtype: torch.dtype) -> Tensor:
        return torch.empty(rows, num_classes, dtype=dtype, device="cpu")

    number = table(torch.int64 if factors[-1] is None else torch.float32)
    return number, table(torch.float32), table(torch.float32)


def _run_class_slopes(
    coefficient: Tensor, target: Tensor, ignore_index: int, *factors: Tensor | None
) -> Tensor:
    rows, num_classes = coefficient.shape
    slope = _fake_class_slopes(coefficient, target)
    tensors = {"coefficient": coefficient, **dict(zip(_FACTORS, factors, strict=True)), "slope": slope}
    run_on_maps(loops.class_slopes, Labels(target, num_classes, ignore_index), rows, tensors)
    return slope


def _fake_class_slopes(coefficient: Tensor, target: Tensor, *_: Any) -> Tensor:
    return torch.empty(target.shape, dtype=torch.float32, device="cpu")


_SCHEMA_OF_FACTORS = "Tensor? weight, Tensor? ranked, Tensor? bits, Tensor? share"
_class_sums = define(
    "cpu_class_sums(Tensor? value, Tensor? squared, Tensor target, int num_classes, int ignore_index, "
    f"SymInt rows, {_SCHEMA_OF_FACTORS}) -> (Tensor, Tensor, Tensor)",
    _run_class_sums,
    _fake_class_sums,
)
_class_slopes = define(
    f"cpu_class_slopes(Tensor coefficient, Tensor target, int ignore_index, {_SCHEMA_OF_FACTORS}) -> Tensor",
    _run_class_slopes,
    _fake_class_slopes,
)
