"""GBW's weights in one kernel against the plain projection, on CUDA or under Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_checks import DEVICE, marks, poisoned
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from classbalance_losses.kernels.cuda.project import project
from classbalance_losses.kernels.simplex import free_weights, project_to_simplex

__all__ = ["poisoned"]
pytestmark = marks


def plain(squared: Tensor, number: Tensor, regularization: float, present: bool, by_number: bool) -> Tensor:
    count = number.clamp(min=1)
    norms = torch.where(number > 0, squared / count, 0)
    point = free_weights(norms / count if by_number else norms, regularization)
    if not present:
        return project_to_simplex(point, float(len(point)))
    return torch.where(number > 0, project_to_simplex(point, (number > 0).sum(), number > 0), 1)


@pytest.mark.parametrize("num_classes", [1, 2, 19, 70])
@pytest.mark.parametrize("present", [False, True])
@pytest.mark.parametrize("by_number", [False, True])
def test_is_the_projection(num_classes: int, present: bool, by_number: bool) -> None:
    number = torch.randint(0, 40, (num_classes,), device=DEVICE)
    squared = torch.rand(num_classes, device=DEVICE) * number
    squared[:4] = squared[0].clone()  # some tie
    for regularization in (1e-3, 0.02, 1.0, 1e4, math.inf):
        expected = plain(squared, number, regularization, present, by_number)
        got = project(squared, number, regularization, present=present, by_number=by_number)
        torch.testing.assert_close(got, expected, rtol=2e-5, atol=1e-5)
        total = float((number > 0).sum()) if present else float(num_classes)
        shared = got[number > 0] if present else got
        torch.testing.assert_close(shared.sum(), torch.tensor(total, device=DEVICE), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("present", [False, True])
def test_what_is_not_finite(present: bool) -> None:
    number = torch.tensor([3, 0, 2, 5, 1], device=DEVICE)
    for special in (math.inf, math.nan):
        squared = torch.tensor([1.0, 0, special, 2, special], device=DEVICE)
        expected = plain(squared, number, 1.0, present, False)
        got = project(squared, number, 1.0, present=present, by_number=False)
        torch.testing.assert_close(got, expected, equal_nan=True)


def test_nothing_is_there() -> None:
    number, squared = torch.zeros(3, dtype=torch.int64, device=DEVICE), torch.zeros(3, device=DEVICE)
    for present in (False, True):
        assert project(squared, number, 1.0, present=present, by_number=False).tolist() == [1, 1, 1]


def test_operator_is_well_formed() -> None:
    squared, number = torch.rand(5, device=DEVICE), torch.arange(5, device=DEVICE)
    op = torch.ops.classbalance_losses.cuda_project.default
    torch.library.opcheck(op, (squared, number, 1.0, True, False))
