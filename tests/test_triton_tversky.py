"""Tversky's losses in one kernel against plain PyTorch in float64, on CUDA or under Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_checks import DEVICE, marks, poisoned
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from classbalance_losses.kernels import tversky
from classbalance_losses.kernels.cuda.tversky import mean_missed
from classbalance_losses.kernels.tversky import Index

__all__ = ["poisoned"]
pytestmark = marks

INDICES = [
    Index(0.5, 0.5, 1.0, 0.0),
    Index(1.0, 1.0, 1.0, 1e-5),
    Index(0.3, 0.7, 0.75, 1.0),
    Index(0.7, 0.1, 2.0, 0.0),
]


def sums(rows: int, classes: int) -> tuple[Tensor, ...]:
    """P, I, n and w: a class is absent in each row, one is a perfect overlap, and one has no weight."""
    number = torch.randint(1, 50, (rows, classes))
    number[:, 0] = 0
    own = number * torch.rand(rows, classes)
    probability = own + 20 * torch.rand(rows, classes)
    if classes > 3:
        own[:, 1] = probability[:, 1] = number[:, 1]
    weight = torch.where(number > 0, torch.rand(classes) + 0.5, 0)
    weight[:, 2:3] = 0
    return tuple(of.to(DEVICE) for of in (probability, own, number, weight))


def outcome(function: object, index: Index, mean: bool, *given: Tensor, grad: Tensor) -> list[Tensor]:
    probability, own, number, weight = given
    leaves = [of.detach().requires_grad_() for of in (probability, own)]
    losses = function(*leaves, number, weight, index, mean=mean)  # type: ignore[operator]
    return [losses.detach(), *torch.autograd.grad(losses, leaves, grad.to(losses.dtype))]


@pytest.mark.parametrize("index", INDICES, ids=str)
@pytest.mark.parametrize(("rows", "classes"), [(1, 19), (3, 4), (2, 1), (1, 300), (0, 3)])
@pytest.mark.parametrize("mean", [False, True])
def test_losses_and_slopes(index: Index, rows: int, classes: int, mean: bool) -> None:
    probability, own, number, weight = sums(rows, classes)
    grad = torch.rand(rows, device=DEVICE)
    for counts in (number, number.float()):
        got = outcome(mean_missed, index, mean, probability, own, counts, weight, grad=grad)
        wide = (of.double() for of in (probability, own, counts, weight))
        for ours, truth in zip(got, outcome(tversky.mean_missed, index, mean, *wide, grad=grad), strict=True):
            torch.testing.assert_close(ours.double(), truth, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_what_is_not_there(index: Index) -> None:
    """Of nothing the loss and its slopes are 0, but that smoothing gives an empty class; a NaN is not hidden."""
    nothing, index = torch.zeros(2, 3, device=DEVICE), index._replace(smooth=0.0)
    grad = torch.ones(2, device=DEVICE)
    for weight in (nothing, nothing + 1e3):
        for values in outcome(mean_missed, index, False, nothing, nothing, nothing.long(), weight, grad=grad):
            assert (values == 0).all()
    probability = nothing.clone()
    probability[1, 2] = math.nan
    losses, slope, own_slope = outcome(
        mean_missed, index, True, probability, nothing, nothing.long(), nothing + 1, grad=grad
    )
    assert losses.isnan().tolist() == [False, True]
    for values in (slope, own_slope):
        assert values.isnan().tolist() == [[False] * 3, [False, False, True]]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_can_be_differentiated_twice(index: Index) -> None:
    probability, own, number, weight = sums(2, 5)
    own[:, 1] -= 0.5
    directions = torch.rand(2, 2, 5, device=DEVICE)

    def second(function: object, dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [of.detach().to(dtype).requires_grad_() for of in (probability, own)]
        losses = function(*leaves, number, weight.to(dtype), index)  # type: ignore[operator]
        slopes = torch.autograd.grad(losses.square().sum(), leaves, create_graph=True)
        total = sum((slope * along).sum() for slope, along in zip(slopes, directions.to(dtype), strict=True))
        return torch.autograd.grad(total, leaves)

    for got, truth in zip(
        second(mean_missed, torch.float32), second(tversky.mean_missed, torch.float64), strict=True
    ):
        torch.testing.assert_close(got.double(), truth, rtol=1e-4, atol=1e-6)


def test_batched_gradients() -> None:
    probability, own, number, weight = sums(2, 5)
    leaf = probability.requires_grad_()
    losses = mean_missed(leaf, own, number, weight, INDICES[0])
    several = torch.rand(3, 2, device=DEVICE)
    (batched,) = torch.autograd.grad(losses, leaf, several, is_grads_batched=True, retain_graph=True)
    for grad, gradient in zip(several, batched, strict=True):
        (alone,) = torch.autograd.grad(losses, leaf, grad, retain_graph=True)
        torch.testing.assert_close(alone, gradient)


def test_operator_is_well_formed() -> None:
    torch.use_deterministic_algorithms(False)  # opcheck compares runs, and NaN is not NaN
    op = torch.ops.classbalance_losses.cuda_mean_missed.default
    torch.library.opcheck(op, (*sums(2, 5), [0.5, 0.5, 1.0, 0.0], True))
