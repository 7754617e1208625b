"""The selecting kernels against PyTorch, on CUDA or, without it, under Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_checks import DEVICE, marks, on_cuda, poisoned
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from classbalance_losses.kernels.call import Hard, Labels, Share
from classbalance_losses.kernels.cuda import select
from classbalance_losses.kernels.cuda.select import kth_largest

__all__ = ["poisoned"]
pytestmark = marks


def of(keep: Tensor) -> Labels:
    return Labels(torch.where(keep, 3, 255).to(torch.uint8), 19, 255)


def found(value: Tensor, keep: Tensor, share: Share) -> tuple[Tensor, Tensor]:
    hard = kth_largest(value, of(keep), value.shape[0], share, None)
    assert hard.ranked.data_ptr() == value.data_ptr()
    return hard.bits, hard.share


def selected(value: Tensor, keep: Tensor, share: Share) -> tuple[Tensor, Tensor]:
    """The k-th largest by sorting, and the share of those that equal it."""
    rows = []
    for row, kept in zip(value.abs().view(torch.int32).cpu(), keep.cpu(), strict=True):
        bits = row[kept]
        k = min(max(share.at_least, math.floor(bits.numel() * share.part)), bits.numel())
        least = int(bits.sort(descending=True).values[k - 1]) if k else 0x7F800000
        above, tied = int((bits > least).sum()), int((bits == least).sum())
        rows.append((least, (k - above) / tied if k else 0.0))
    bits, parts = zip(*rows, strict=True)
    return torch.tensor(bits), torch.tensor(parts)


@pytest.mark.parametrize(("fraction", "at_least"), [(0.2, 1), (0.29, 0), (1e-4, 0), (1e-4, 30), (1.0, 1)])
def test_finds_the_kth_largest_and_its_share(fraction: float, at_least: int) -> None:
    value = torch.randn(4, 4200, device=DEVICE) ** 3
    value[0, ::3], value[0, 1::3] = 0.0, -0.0
    value[1, :40], value[1, 50], value[1, 60] = math.nan, -math.nan, math.inf
    value[2] = value[2, 0]
    keep = torch.rand(4, 4200, device=DEVICE) < 0.7
    keep[3] = False
    which = Share(fraction, at_least)
    bits, share = found(value, keep, which)
    expected, part = selected(value, keep, which)
    assert torch.equal(bits.cpu(), expected)
    torch.testing.assert_close(share.cpu(), part)
    ranks = [(value[:, :100], keep[:, :100]), (value[:, 100:], keep[:, 100:])]
    joined = joint(ranks, which)
    assert torch.equal(joined.bits, bits)
    assert torch.equal(joined.share, share)


def joint(ranks: list[tuple[Tensor, Tensor]], which: Share) -> Hard:
    """The search of the last rank, when the tables of the others are added to its own."""
    *others, (value, keep) = ranks
    buffers = [select._buffers(values, len(values)) for values, _ in others]
    level = 0

    def joined(table: Tensor) -> Tensor:
        nonlocal level
        total = table.clone()
        for (values, candidates), own in zip(others, buffers, strict=True):
            target = of(candidates).target
            torch.ops.classbalance_losses.cuda_count_digit(values, target, 255, *own, level, *which)
            total += own[0][level, :, :-2]
        for own in buffers:
            own[0][level, :, :-2] = total
        level += 1
        return total

    return kth_largest(value, of(keep), len(value), which, joined)


def test_a_selection_from_nothing() -> None:
    value, keep = torch.rand(2, 3, device=DEVICE), torch.ones(2, 3, dtype=torch.bool, device=DEVICE)
    bits, share = found(value[:, :0], keep[:, :0], Share(0.2, 1))
    assert bits.tolist() == [0x7F800000] * 2
    assert not share.any()
    assert [t.shape for t in found(value[:0], keep[:0], Share(0.2, 1))] == [(0,), (0,)]
    bits, share = found(value.T, keep.T, Share(0.5, 1))
    assert torch.equal(bits, value.amax(0).view(torch.int32).long())


def test_selection_is_well_formed_and_compiles() -> None:
    torch.compiler.reset()
    value, keep = torch.rand(2, 30, device=DEVICE), torch.rand(2, 30, device=DEVICE) < 0.5
    which, target = Share(0.2, 1), of(keep).target
    ops = torch.ops.classbalance_losses
    tables, candidates = select._buffers(value, 2)
    torch.library.opcheck(ops.cuda_kth_largest.default, (value, target, 255, 2, *which))
    maps = (value, target, 255, tables, candidates)
    torch.library.opcheck(ops.cuda_count_digit.default, (*maps, 0, *which))
    torch.library.opcheck(ops.cuda_found_digits.default, (tables, *which))

    def hard(joined: bool) -> list[Tensor]:
        return list(kth_largest(value, Labels(target, 19, 255), 2, which, Tensor.clone if joined else None))

    compiled = torch.compile(hard, fullgraph=True, backend="aot_eager")
    for joined in (False, True):
        for got, expected in zip(compiled(joined), hard(False), strict=True):
            assert torch.equal(got, expected)


@on_cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_neither_synchronises_nor_minds_capture() -> None:
    value, keep = torch.rand(2, 4000, device=DEVICE), torch.rand(2, 4000, device=DEVICE) < 0.5
    which = Share(0.2, 1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found(value, keep, which)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = found(value, keep, which)
    value.mul_(0.5)
    graph.replay()
    for got, expected in zip(captured, found(value, keep, which), strict=True):
        assert torch.equal(got, expected)
