"""The sums over classes against PyTorch in float64, on CUDA or, without it, under Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_checks import DEVICE, all_of, kept, labels, marks, on_cuda, poisoned
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from classbalance_losses.kernels.call import Hard, Labels
from classbalance_losses.kernels.cuda import classes
from classbalance_losses.kernels.cuda.classes import class_sums

__all__ = ["poisoned"]
pytestmark = marks


def exact(value: Tensor, of: Labels, rows: int) -> Tensor:
    """Sum by a scatter in float64."""
    keep, row = kept(of), torch.arange(rows, device=DEVICE).view(-1, 1)
    cell = row * of.num_classes + torch.where(keep, of.target.long(), 0).reshape(rows, -1)
    zeros = torch.zeros(rows * of.num_classes, dtype=torch.float64, device=DEVICE)
    sums = zeros.scatter_add(0, cell.flatten(), torch.where(keep, value, 0).double().flatten())
    return sums.view(rows, of.num_classes)


def by_row(values: Tensor, target: Tensor) -> Tensor:
    """A number for each row, for each of its pixels."""
    return values.repeat_interleave(target.numel() // values.numel()).view(target.shape)


def near(got: Tensor | None, expected: Tensor) -> None:
    assert got is not None
    torch.testing.assert_close(got.double(), expected.double(), rtol=2e-6, atol=1e-7)


def map_of(of: Labels) -> Tensor:
    return torch.where(kept(of), torch.rand(of.target.shape, device=DEVICE), math.nan)


def check(of: Labels, rows: int = 1) -> None:
    """Counts, sums and gradient, without a threshold and with one."""
    keep, target = kept(of), of.target
    value, squared, weight = map_of(of).requires_grad_(), map_of(of), map_of(of)
    ranked = torch.where(keep, torch.randint(3, keep.shape, device=DEVICE).float(), math.nan)
    threshold, share = torch.ones(rows, device=DEVICE), torch.rand(rows, device=DEVICE)
    threshold[-1] = 2
    at, tied = by_row(threshold, target), by_row(share, target)
    part = torch.where(ranked == at, tied, (ranked > at).float())
    hard = Hard(ranked, threshold.view(torch.int32).long(), share)
    for which, factor in ((None, torch.ones_like(part)), (hard, part)):
        sums = class_sums(of, value, squared, weight, rows=rows, hard=which)
        count = exact(factor, of, rows)
        if which is None:
            assert sums.number.dtype == torch.int64
            assert torch.equal(sums.number.double(), count)
        near(sums.number, count)
        near(sums.value, exact(factor * weight * value.detach(), of, rows))
        near(sums.squared, exact(factor * weight**2 * squared, of, rows))
        near(class_sums(of, None, squared, weight, rows=rows, hard=which).squared, sums.squared)
        coefficient = torch.randn(rows, of.num_classes, device=DEVICE, requires_grad=True)
        (gradient,) = torch.autograd.grad(sums.value, value, coefficient.detach(), retain_graph=True)
        own = torch.where(keep, target.long(), 0).reshape(rows, -1)
        spread = torch.where(keep, coefficient.detach().gather(1, own).view(keep.shape) * weight * factor, 0)
        near(gradient, spread)
        (graph,) = torch.autograd.grad(sums.value, value, coefficient, create_graph=True)
        near(graph, spread)
        (again,) = torch.autograd.grad(graph, coefficient, value.detach().nan_to_num(1))
        near(again, exact(factor * weight * value.detach(), of, rows))


@pytest.mark.parametrize(
    ("num_classes", "dtype", "rows"),
    [(1, torch.int8, 1), (3, torch.uint8, 2), (19, torch.int64, 1)],
    ids=str,
)
def test_sums_of_classes(num_classes: int, dtype: torch.dtype, rows: int) -> None:
    check(labels((2, 5, 31), num_classes, dtype), rows)


def test_many_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classes, "_ROUNDS", 2)
    of = labels((2, 30), 60)
    sums = class_sums(of, map_of(of))
    assert torch.equal(sums.number[0], torch.bincount(of.target[kept(of)], minlength=60))


def test_few_parts_take_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classes, "_PARTS", 2)
    monkeypatch.setattr(classes, "_ROUNDS", 2)
    check(labels((3, 250), 5))


@pytest.mark.skipif(DEVICE == "cuda", reason="Triton's compiler takes minutes for a warp of so many lanes")
def test_counts_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread's two counts share a float, and those of all threads an integer."""
    most = classes._ADDED + classes._ROUNDS
    assert most < classes._SOME
    pixels = most * classes._LANES
    monkeypatch.setattr(classes, "_PARTS", 1)
    monkeypatch.setattr(classes, "_LANES", 2048)
    of = all_of(torch.zeros(pixels, dtype=torch.uint8, device=DEVICE), 1)
    value = torch.ones(pixels, device=DEVICE)
    for threshold, count in ((1.0, pixels), (2.0, 0), (0.5, pixels)):
        bits = torch.tensor([threshold], device=DEVICE).view(torch.int32).long()
        hard = Hard(value, bits, torch.ones(1, device=DEVICE))
        assert class_sums(of, value, hard=hard).number.tolist() == [[count]]
    assert class_sums(of).number.tolist() == [[pixels]]


def test_views_and_no_pixels() -> None:
    of = labels((3, 40), 4)
    check(of._replace(target=of.target.T))
    check(of._replace(target=torch.full_like(of.target, -100)))
    nothing = of._replace(target=of.target[:0])
    check(nothing)
    empty = class_sums(nothing, torch.rand(0, 40, device=DEVICE), rows=0)
    assert empty.value is not None
    assert empty.number.shape == empty.value.shape == (0, 4)


def test_an_infinite_sum_stays_in_its_class() -> None:
    target = torch.tensor([0, 1, 1, 2, 3], device=DEVICE)
    value = torch.tensor([math.inf, 1.0, 2.0, math.nan, math.inf], device=DEVICE)
    weight = torch.tensor([1.0, 1, 1, 1, 0], device=DEVICE)
    sums = class_sums(all_of(target, 4), value, None, weight).value
    assert sums is not None
    torch.testing.assert_close(sums.cpu(), torch.tensor([[math.inf, 3, math.nan, 0]]), equal_nan=True)


def test_what_is_no_class_counts_nowhere() -> None:
    """It is about to be refused, or is to be ignored by a number that its type cannot hold."""
    target = torch.tensor([0, 7, 200, 156, 255], dtype=torch.uint8, device=DEVICE)
    assert class_sums(Labels(target, 7, -100)).number.tolist() == [[1, 0, 0, 0, 0, 0, 0]]
    leaf = torch.rand(5, device=DEVICE, requires_grad=True)
    sums = class_sums(Labels(target, 7, -100), leaf).value
    assert sums is not None
    assert torch.autograd.grad(sums.sum(), leaf)[0].isfinite().all()


def test_nothing_counts_where_no_share_does() -> None:
    """Where k is 0 the threshold is infinity, which nothing equals then; a NaN is above it."""
    infinite = torch.full((1,), 0x7F800000, device=DEVICE)
    value = torch.tensor([1.0, math.inf, math.nan, 2], device=DEVICE, requires_grad=True)
    of = all_of(torch.tensor([0, 0, 1, 0], device=DEVICE), 2)
    hard = Hard(value.detach(), infinite, torch.zeros(1, device=DEVICE))
    sums = class_sums(of, value, hard=hard)
    assert sums.value is not None
    assert sums.number.tolist() == [[0, 1]]
    assert sums.value[0, 0] == 0
    assert sums.value[0, 1].isnan()
    assert torch.autograd.grad(sums.value.sum(), value)[0].tolist() == [0, 0, 1, 0]


def test_operators_are_well_formed() -> None:
    of = labels((2, 3), 5)
    value, share = torch.rand(2, 3, device=DEVICE), torch.rand(1, device=DEVICE)
    factors = (value, value, share.view(torch.int32).long(), share)
    ops = torch.ops.classbalance_losses
    torch.library.opcheck(ops.cuda_class_sums.default, (value, None, *of, 1, *factors))
    coefficient = torch.rand(1, 5, device=DEVICE)
    torch.library.opcheck(ops.cuda_class_slopes.default, (coefficient, of.target, -100, *factors))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(dynamic: bool) -> None:
    torch.compiler.reset()

    def mean(value: Tensor, target: Tensor) -> Tensor:
        sums = class_sums(Labels(target, 5, -100), value * 2, value.detach(), rows=value.shape[0])
        return (sums.value * sums.squared).sum() / sums.number.sum()

    compiled = torch.compile(mean, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for width in (30, 40) if dynamic else (30,):
        value = torch.rand(2, width, device=DEVICE, requires_grad=True)
        target, outcomes = labels((2, width), 5).target, []
        for function in (mean, compiled):
            loss = function(value, target)
            outcomes.append((loss.detach(), *torch.autograd.grad(loss, value)))
        torch.testing.assert_close(*outcomes)


@on_cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_neither_synchronises_nor_minds_capture() -> None:
    of, value = labels((2, 4000), 5), torch.rand(2, 4000, device=DEVICE)

    def step() -> list[Tensor]:
        return [sums for sums in class_sums(of, value) if sums is not None]

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
