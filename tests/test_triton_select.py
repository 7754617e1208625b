"""The selecting kernels against PyTorch, on CUDA or, without it, under Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_checks import DEVICE, marks, on_cuda, poisoned
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from classbalance_losses.kernels import triton_select
from classbalance_losses.kernels.triton_select import Share, kth_largest, kth_largest_of_ranks
from classbalance_losses.ops.mining import fixed_point

__all__ = ["poisoned"]
pytestmark = marks


def share_of(fraction: float, at_least: int) -> Share:
    return Share(*fixed_point(fraction), at_least)


def selected(value: Tensor, keep: Tensor, fraction: float, at_least: int) -> tuple[Tensor, Tensor]:
    """The k-th largest by sorting, and the share of those that equal it."""
    found = []
    for row, kept in zip(value.abs().view(torch.int32).cpu(), keep.cpu(), strict=True):
        bits = row[kept]
        k = min(max(at_least, math.floor(bits.numel() * fraction)), bits.numel())
        least = int(bits.sort(descending=True).values[k - 1]) if k else 0x7FFFFFFF
        above, tied = int((bits > least).sum()), int((bits == least).sum())
        found.append((least, (k - above) / tied if k else 0.0))
    bits, share = zip(*found, strict=True)
    return torch.tensor(bits, dtype=torch.int32), torch.tensor(share)


@pytest.mark.parametrize(("fraction", "at_least"), [(0.2, 1), (0.29, 0), (1e-4, 0), (1e-4, 30), (1.0, 1)])
def test_finds_the_kth_largest_and_its_share(fraction: float, at_least: int) -> None:
    value = torch.randn(4, 4200, device=DEVICE) ** 3
    value[0, ::3], value[0, 1::3] = 0.0, -0.0
    value[1, :40], value[1, 50], value[1, 60] = math.nan, -math.nan, math.inf
    value[2] = value[2, 0]
    keep = torch.rand(4, 4200, device=DEVICE) < 0.7
    keep[3] = False
    which = share_of(fraction, at_least)
    bits, share = kth_largest(value, keep, which)
    expected, part = selected(value, keep, fraction, at_least)
    assert torch.equal(bits.cpu(), expected)
    torch.testing.assert_close(share.cpu(), part)
    ranks = [(value[:, :100], keep[:, :100]), (value[:, 100:], keep[:, 100:])]
    assert torch.equal(torch.stack(joint(ranks, which)), torch.stack((bits, share.view(torch.int32))))


def joint(ranks: list[tuple[Tensor, Tensor]], which: Share) -> tuple[Tensor, Tensor]:
    """The search of the last rank, when the tables of the others are added to its own."""
    *others, (value, keep) = ranks
    tables = [triton_select._tables(value.shape[0], value.device) for _ in others]
    level = 0

    def joined(table: Tensor) -> Tensor:
        nonlocal level
        total = table.clone()
        for (other, kept), (own, states) in zip(others, tables, strict=True):
            torch.ops.classbalance_losses.count_digit(other, kept, own, states, level, *which)
            total += own[level]
        for own, _ in tables:
            own[level] = total
        level += 1
        return total

    bits, share = kth_largest_of_ranks(value, keep, which, joined)
    return bits, share.view(torch.int32)


def test_a_selection_from_nothing() -> None:
    value, keep = torch.rand(2, 3, device=DEVICE), torch.ones(2, 3, dtype=torch.bool, device=DEVICE)
    bits, share = kth_largest(value[:, :0], keep[:, :0], share_of(0.2, 1))
    assert bits.tolist() == [0x7FFFFFFF] * 2
    assert not share.any()
    assert [t.shape for t in kth_largest(value[:0], keep[:0], share_of(0.2, 1))] == [(0,), (0,)]
    bits, share = kth_largest(value.T, keep.T, share_of(0.5, 1))
    assert torch.equal(bits, value.amax(0).view(torch.int32))


def test_selection_is_well_formed_and_compiles() -> None:
    torch.compiler.reset()
    value, keep = torch.rand(2, 30, device=DEVICE), torch.rand(2, 30, device=DEVICE) < 0.5
    which = share_of(0.2, 1)
    ops = torch.ops.classbalance_losses
    tables, states = triton_select._tables(2, value.device)
    states.zero_()
    torch.library.opcheck(ops.kth_largest.default, (value, keep, *which))
    torch.library.opcheck(ops.count_digit.default, (value, keep, tables, states, 0, *which))
    torch.library.opcheck(ops.found_digits.default, (tables, states, *which))
    compiled = torch.compile(kth_largest_of_ranks, fullgraph=True, backend="aot_eager")
    for got, expected in zip(
        compiled(value, keep, which, Tensor.clone), kth_largest(value, keep, which), strict=True
    ):
        assert torch.equal(got, expected)


@on_cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_neither_synchronises_nor_minds_capture() -> None:
    value, keep = torch.rand(2, 4000, device=DEVICE), torch.rand(2, 4000, device=DEVICE) < 0.5
    which = share_of(0.2, 1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        kth_largest(value, keep, which)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = kth_largest(value, keep, which)
    value.mul_(0.5)
    graph.replay()
    for got, expected in zip(captured, kth_largest(value, keep, which), strict=True):
        assert torch.equal(got, expected)
