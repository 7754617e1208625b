"""The weighted mean in two kernels against PyTorch in float64, on CUDA or under Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_checks import DEVICE, labels, marks, poisoned
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from classbalance_losses.ops.fused import fused_mean
from classbalance_losses.ops.shape import focal_modulated

from classbalance_losses import use_backend
from classbalance_losses.kernels import triton_mean

__all__ = ["poisoned"]
pytestmark = marks


def exact(
    loss: Tensor,
    target: Tensor,
    keep: Tensor,
    table: Tensor | None,
    weight: Tensor | None,
    gamma: float,
    kind: str,
) -> Tensor:
    index = torch.where(keep, target.long(), 0)
    own = (
        torch.ones(keep.shape, dtype=torch.float64, device=DEVICE) if table is None else table.double()[index]
    )
    scale = own if weight is None else own * weight.double()
    value = focal_modulated(torch.where(keep & (scale > 0), loss.double(), 0), gamma)
    total = (torch.where(keep, scale, 0) * value).sum()
    if kind == "sum":
        return total
    norm = torch.where(keep, own, 0).sum() if kind == "weights" else keep.sum()
    return total / torch.where(norm > 0, norm, 1)


@pytest.mark.parametrize("kind", ["weights", "pixels", "sum"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.5])
def test_the_mean_and_its_gradients(gamma: float, weighted: bool, kind: str) -> None:
    target, keep = labels((3, 700), 5, torch.int32 if weighted else torch.int64)
    loss = torch.rand(3, 700, device=DEVICE) ** 4 * 9
    loss[0, :9] = torch.tensor([0.0, 1e-30, 1e-7, 0.2499, 0.25, 0.2501, 20, 99, 3e4])
    keep[0, :9] = True
    target[0, :9] = 1
    loss = torch.where(keep, loss, math.nan)
    table = torch.tensor([0.3, 1, 0, 2, 5], device=DEVICE) if weighted else None
    weight = torch.where(keep, torch.rand(3, 700, device=DEVICE), math.nan) if weighted else None
    if weight is not None:  # what has no weight may be infinite
        loss = torch.where(target == 2, math.inf, loss)
        loss[0, 20], weight[0, 20], keep[0, 20] = math.inf, 0, True
    first = second = None
    outcomes = []
    for how in (exact, by_kernels):
        leaf = loss.clone().requires_grad_()
        value = how(leaf, target, keep, table, weight, gamma, kind)
        (first,) = torch.autograd.grad(value, leaf, retain_graph=True)
        usual = torch.where(loss.isfinite(), loss, 0)
        (graph,) = torch.autograd.grad(value, leaf, create_graph=True)
        if gamma not in (0.0, 0.5):  # its slope has a slope, everywhere
            (second,) = torch.autograd.grad((graph * usual).sum(), leaf)
        outcomes.append([t.nan_to_num(0).double() for t in (value.detach(), first, second) if t is not None])
    # PyTorch's own operations are behind the second derivative, which changes its sign, and is rounded as theirs.
    for truth, got, far in zip(*outcomes, (1e-6, 1e-6, 1e-5), strict=False):
        torch.testing.assert_close(got, truth, rtol=5e-6, atol=far * float(truth.abs().max()))


def by_kernels(
    loss: Tensor,
    target: Tensor,
    keep: Tensor,
    table: Tensor | None,
    weight: Tensor | None,
    gamma: float,
    kind: str,
) -> Tensor:
    with use_backend("triton"):
        value = fused_mean(
            loss,
            target,
            keep,
            table,
            weight,
            gamma=gamma,
            by_weight=kind == "weights",
            reduction="sum" if kind == "sum" else "mean",
            process_group=None,
        )
    assert value is not None
    return value


def test_few_programs_and_no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_mean, "_PARTS", 2)
    target, keep = labels((5, 1200), 4)
    loss = torch.rand(5, 1200, device=DEVICE)
    value = by_kernels(loss, target, keep, None, None, 0.0, "pixels")
    torch.testing.assert_close(value, loss[keep].mean())
    for nothing in (torch.zeros_like(keep), keep[:0]):
        leaf = loss[: len(nothing)].clone().requires_grad_()
        empty = by_kernels(leaf, target[: len(nothing)], nothing, None, None, 2.0, "pixels")
        assert empty == 0
        assert not torch.autograd.grad(empty, leaf)[0].any()


def test_a_nan_stays_one() -> None:
    target = torch.tensor([0, 1], device=DEVICE)
    loss = torch.tensor([math.nan, 1.0], device=DEVICE)
    for gamma in (0.0, 2.0):
        assert by_kernels(loss, target, target >= 0, None, None, gamma, "pixels").isnan()
        assert by_kernels(loss, target, target > 0, None, None, gamma, "pixels").isfinite()


def test_operators_are_well_formed() -> None:
    target, keep = labels((2, 3), 5)
    maps = (torch.rand(2, 3, device=DEVICE), target, keep, torch.rand(5, device=DEVICE), None, 2.0)
    one = torch.ones((), device=DEVICE)
    ops = torch.ops.classbalance_losses
    torch.library.opcheck(ops.weighted_mean.default, (*maps, True))
    torch.library.opcheck(ops.weighted_mean_gradient.default, (one, one, *maps))
