"""The sums over classes against PyTorch in float64, on CUDA or, without it, under Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_checks import DEVICE, labels, marks, on_cuda, poisoned
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from classbalance_losses.kernels import triton_classes
from classbalance_losses.kernels.triton_classes import Hard, checked_labels, class_sums

__all__ = ["poisoned"]
pytestmark = marks


def exact(value: Tensor, target: Tensor, keep: Tensor, rows: int, num_classes: int) -> Tensor:
    """Sum by a scatter in float64."""
    row = torch.arange(rows, device=DEVICE).view(-1, 1)
    cell = row * num_classes + torch.where(keep, target.long(), 0).reshape(rows, -1)
    kept = torch.where(keep, value, 0).double().reshape(rows, -1)
    zeros = torch.zeros(rows * num_classes, dtype=torch.float64, device=DEVICE)
    return zeros.scatter_add(0, cell.flatten(), kept.flatten()).view(rows, num_classes)


def by_row(values: Tensor, target: Tensor) -> Tensor:
    """A number for each row, for each of its pixels."""
    return values.repeat_interleave(target.numel() // values.numel()).view(target.shape)


def near(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.double(), expected.double(), rtol=2e-6, atol=1e-7)


def map_of(keep: Tensor) -> Tensor:
    return torch.where(keep, torch.rand(keep.shape, device=DEVICE), math.nan)


def check(target: Tensor, keep: Tensor, num_classes: int, rows: int = 1) -> None:
    """Counts, sums and gradient, without a threshold and with one."""
    value, squared, weight = map_of(keep).requires_grad_(), map_of(keep), map_of(keep)
    ranked = torch.where(keep, torch.randint(3, keep.shape, device=DEVICE).float(), math.nan)
    threshold, share = torch.ones(rows, device=DEVICE), torch.rand(rows, device=DEVICE)
    threshold[-1] = 2
    at, tied = by_row(threshold, target), by_row(share, target)
    part = torch.where(ranked == at, tied, (ranked > at).float())
    hard = Hard(ranked, threshold.view(torch.int32), share)
    for which, factor in ((Hard(), torch.ones_like(part)), (hard, part)):
        sums = class_sums(target, keep, num_classes, value, squared, weight, rows=rows, hard=which)
        count = exact(factor, target, keep, rows, num_classes)
        if which.bits is None:
            assert sums.number.dtype == torch.int64
            assert torch.equal(sums.number.double(), count)
        near(sums.number, count)
        near(sums.value, exact(factor * weight * value.detach(), target, keep, rows, num_classes))
        near(sums.squared, exact(factor * weight**2 * squared, target, keep, rows, num_classes))
        coefficient = torch.randn(rows, num_classes, device=DEVICE, requires_grad=True)
        (gradient,) = torch.autograd.grad(sums.value, value, coefficient, create_graph=True)
        own = torch.where(keep, target.long(), 0).reshape(rows, -1)
        spread = torch.where(keep, coefficient.detach().gather(1, own).view(keep.shape) * weight * factor, 0)
        near(gradient, spread)
        (again,) = torch.autograd.grad(gradient, coefficient, value.detach().nan_to_num(1))
        near(again, exact(factor * weight * value.detach(), target, keep, rows, num_classes))


@pytest.mark.parametrize(
    ("num_classes", "dtype", "rows"),
    [(1, torch.int8, 1), (3, torch.uint8, 2), (19, torch.int64, 1)],
    ids=str,
)
def test_sums_of_classes(num_classes: int, dtype: torch.dtype, rows: int) -> None:
    check(*labels((2, 5, 31), num_classes, dtype), num_classes, rows)


def test_many_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_classes, "_ROUNDS", 2)
    target, keep = labels((2, 30), 60)
    sums = class_sums(target, keep, 60, map_of(keep))
    assert torch.equal(sums.number[0], torch.bincount(target[keep], minlength=60))


def test_few_parts_take_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_classes, "_PARTS", 2)
    monkeypatch.setattr(triton_classes, "_ROUNDS", 2)
    check(*labels((3, 250), 5), 5)


def test_counts_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread's two counts share a float, and those of all threads an integer."""
    most = triton_classes._ADDED + triton_classes._ROUNDS
    assert most < triton_classes._SOME
    pixels = most * triton_classes._LANES
    monkeypatch.setattr(triton_classes, "_PARTS", 1)
    monkeypatch.setattr(triton_classes, "_LANES", 2048)
    target = torch.zeros(pixels, dtype=torch.uint8, device=DEVICE)
    keep, value = target == 0, torch.ones(pixels, device=DEVICE)
    for threshold, count in ((1.0, pixels), (2.0, 0), (0.5, pixels)):
        bits = torch.tensor([threshold], device=DEVICE).view(torch.int32)
        hard = Hard(value, bits, torch.ones(1, device=DEVICE))
        assert class_sums(target, keep, 1, value, hard=hard).number.tolist() == [[count]]
    assert class_sums(target, keep, 1).number.tolist() == [[pixels]]


def test_views_and_no_pixels() -> None:
    target, keep = labels((3, 40), 4)
    check(target.T, keep.T, 4)
    check(target, torch.zeros_like(keep), 4)
    check(target[:0], keep[:0], 4)
    empty = class_sums(target[:0], keep[:0], 4, torch.rand(0, 40, device=DEVICE), rows=0)
    assert empty.number.shape == empty.value.shape == (0, 4)


def test_an_infinite_sum_stays_in_its_class() -> None:
    target = torch.tensor([0, 1, 1, 2], device=DEVICE)
    value = torch.tensor([math.inf, 1.0, 2.0, math.nan], device=DEVICE)
    sums = class_sums(target, target >= 0, 3, value).value
    torch.testing.assert_close(sums.cpu(), torch.tensor([[math.inf, 3, math.nan]]), equal_nan=True)


def test_nothing_counts_where_no_share_does() -> None:
    """A NaN may have the bits of the threshold of an empty H."""
    nothing = torch.full((1,), 0x7FFFFFFF, dtype=torch.int32, device=DEVICE)
    value = nothing.expand(4).clone().view(torch.float32).requires_grad_()
    target = torch.zeros(4, dtype=torch.int64, device=DEVICE)
    hard = Hard(value.detach(), nothing, torch.zeros(1, device=DEVICE))
    sums = class_sums(target, target == 0, 2, value, hard=hard)
    assert not sums.number.any()
    assert not sums.value.any()
    assert not torch.autograd.grad(sums.value.sum(), value)[0].any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_labels(dtype: torch.dtype) -> None:
    target, keep = labels((3, 500), 7, dtype)
    ignored = 255 if dtype == torch.uint8 else -100
    mask, fit = checked_labels(target, 7, ignored)
    assert torch.equal(mask, keep)
    assert fit
    assert not checked_labels(target, 7, -99)[1]  # a uint8 is compared as the number that it is
    assert not checked_labels(torch.where(keep, target, ignored), 6, ignored)[1]
    assert checked_labels(target[:0], 7, ignored)[1]


def test_operators_are_well_formed() -> None:
    target, keep = labels((2, 3), 5)
    value, share = torch.rand(2, 3, device=DEVICE), torch.rand(1, device=DEVICE)
    hard = (value, share.view(torch.int32), share)
    ops = torch.ops.classbalance_losses
    torch.library.opcheck(ops.class_table.default, (target, keep, 5, 1, value, None, value, *hard))
    torch.library.opcheck(ops.spread.default, (torch.rand(1, 5, device=DEVICE), target, keep, value, *hard))
    torch.library.opcheck(ops.checked_labels.default, (target, 5, -100))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo does it
def test_compiles_whole() -> None:
    torch.compiler.reset()

    def mean(value: Tensor, target: Tensor) -> Tensor:
        keep, fit = checked_labels(target, 5, -100)
        sums = class_sums(target, keep, 5, value)
        return torch.where(fit, sums.value.sum() / sums.number.sum(), math.nan)

    value = torch.rand(2, 30, device=DEVICE, requires_grad=True)
    target, _ = labels((2, 30), 5)
    compiled = torch.compile(mean, fullgraph=True, backend="aot_eager")
    outcomes = []
    for function in (mean, compiled):
        loss = function(value, target)
        outcomes.append((loss.detach(), *torch.autograd.grad(loss, value)))
    torch.testing.assert_close(*outcomes)


@on_cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_neither_synchronises_nor_minds_capture() -> None:
    target, keep = labels((2, 4000), 5)
    value = torch.rand(2, 4000, device=DEVICE)

    def step() -> tuple[Tensor, ...]:
        return *class_sums(target, keep, 5, value), *checked_labels(target, 5, -100)

    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    value.mul_(0.5)
    graph.replay()
    for got, expected in zip(captured, step(), strict=True):
        assert torch.equal(got, expected)
