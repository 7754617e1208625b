r"""GBW's class weights on CUDA in one kernel: the norms, their projection on the scaled simplex, and who takes part.

The projection of u is :math:`v_c = \max(0, u_c - \tau)` for the largest :math:`\tau` of

.. math:: \tau_c = \frac{\sum_{u_k \ge u_c} u_k - s}{\lvert \{k : u_k \ge u_c\} \rvert},

since the quotient of the r largest rises with r as long as the next one is above it. So nothing is sorted: each class
adds up those that are not below it.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from classbalance_losses.kernels import simplex
from classbalance_losses.kernels.cuda.common import Launch, define

_MOST_CLASSES = 1 << 10  # each is compared with each
_LARGE = tl.constexpr(torch.finfo(torch.float32).max ** 0.5)


def project(
    squared: Tensor, number: Tensor, regularization: float, *, present: bool, by_number: bool
) -> Tensor:
    """Return GBW's class weights (C,), as `simplex.project` does: by that itself for many classes."""
    if squared.shape[0] > _MOST_CLASSES:
        return simplex.project(squared, number, regularization, present=present, by_number=by_number)
    weights: Tensor = _PROJECT(squared, number, float(regularization), present, by_number)
    return weights


def _project(
    squared: Tensor, number: Tensor, regularization: float, present: bool, by_number: bool
) -> Tensor:
    weights = torch.empty_like(squared)
    launch = _launch(squared.shape[0], regularization, present, by_number)
    launch(squared.contiguous(), number.contiguous(), weights)
    return weights


@lru_cache(maxsize=1 << 10)
def _launch(num_classes: int, regularization: float, present: bool, by_number: bool) -> Launch:
    constants = (present, by_number, triton.next_power_of_2(num_classes))
    return Launch(_kernel, 1, (num_classes, 2 * regularization), constants)


_PROJECT = define(
    "cuda_project(Tensor squared, Tensor number, float regularization, bool present, bool by_number) -> Tensor",
    _project,
    lambda squared, *_: torch.empty_like(squared),
)


@triton.jit(do_not_specialize=["num_classes"])
def _kernel(
    squared_ptr, number_ptr, weight_ptr, num_classes, divisor,
    present: tl.constexpr, by_number: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    lane = tl.arange(0, block)
    exists = lane < num_classes
    u, is_there = _point(squared_ptr + lane, number_ptr + lane, exists, divisor, by_number)
    part = exists
    if present:
        part = part & is_there
    # The projection does not change when all of u moves; with its largest entry at 0 nothing cancels.
    top = tl.max(tl.where(part, u, float("-inf")), 0)
    nothing = tl.sum(tl.where(part, u * 0.0, 0.0), 0)  # or NaN
    u -= top
    # Read again from here: a program that makes it anew of other lanes may round it otherwise, and not find itself.
    tl.store(weight_ptr + lane, tl.where(part, u, float("-inf")), mask=exists)
    tl.debug_barrier()
    total = tl.sum(tl.where(part, 1.0, 0.0), 0)
    sums = tl.zeros((block,), tl.float32)
    count = tl.zeros((block,), tl.float32)
    for k in range(num_classes):
        other = tl.load(weight_ptr + k)
        is_above = other >= u
        sums += tl.where(is_above, other, 0.0)
        count += tl.where(is_above, 1.0, 0.0)
    tau = tl.max(tl.where(part, (sums - total) / tl.maximum(count, 1.0), float("-inf")), 0)
    weight = tl.maximum(u - tau, 0.0) + nothing
    if present:
        weight = tl.where(is_there, weight, 1.0)
    tl.debug_barrier()
    tl.store(weight_ptr + lane, weight, mask=exists)


@triton.jit
def _point(squared_ptr, number_ptr, mask, divisor, by_number: tl.constexpr):
    """Return u of classes, and whether they are there. An infinite norm is one so large that it has all the weight."""
    number = tl.load(number_ptr, mask=mask, other=0).to(tl.float32)
    norm = tl.load(squared_ptr, mask=mask, other=0.0) / tl.maximum(number, 1.0)
    if by_number:
        norm /= tl.maximum(number, 1.0)
    norm = tl.where(number > 0, norm, 0.0)
    return tl.where(norm > _LARGE, _LARGE, norm) / divisor, number > 0
