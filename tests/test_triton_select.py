"""The counting kernels against PyTorch, on CUDA or, without it, under Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_checks import DEVICE, labels, marks, on_cuda, poisoned
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from classbalance_losses.kernels import triton_select
from classbalance_losses.kernels.triton_select import (
    Share,
    class_counts,
    class_sums,
    histogram16,
    kth_largest,
    kth_largest_of_ranks,
)
from classbalance_losses.ops.mining import ordered_bits

__all__ = ["poisoned"]
pytestmark = marks


def expected_histogram(bits: Tensor, keep: Tensor, prefix: Tensor, shift: int) -> Tensor:
    rows = []
    for row, kept, head in zip(bits.long().cpu(), keep.cpu(), prefix.cpu(), strict=True):
        active = row[kept & (row >> min(shift + 16, 63) == head)]
        rows.append(torch.bincount((active >> shift) & 65535, minlength=65536))
    return torch.stack(rows)


@pytest.mark.parametrize("wide", [False, True])
def test_counts_the_digits_below_a_prefix(wide: bool) -> None:
    value = torch.randn(3, 1500, device=DEVICE, dtype=torch.float64 if wide else torch.float32).abs()
    value[0, ::3] = 0
    value[1] = value[1, 7]
    keep = torch.rand(3, 1500, device=DEVICE) < 0.8
    keep[1, 7] = True
    bits = ordered_bits(value) if wide else value.view(torch.int32)
    prefix = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    for shift in (48, 32, 16, 0) if wide else (16, 0):
        got = histogram16(bits, keep, prefix, shift)
        assert got.dtype == torch.int64
        assert torch.equal(got.cpu(), expected_histogram(bits, keep, prefix, shift))
        assert torch.equal(histogram16(bits.long(), keep, prefix, shift), got)
        prefix = bits.long()[:, 7] >> shift


@pytest.mark.parametrize("digits", [2, 4])
def test_finds_the_kth_largest(digits: int) -> None:
    """The search of ``ops.mining``, with the kernel in the place of the scatter."""
    value = torch.rand(2, 1300, device=DEVICE, dtype=torch.float32 if digits == 2 else torch.float64) ** 4
    bits, keep = ordered_bits(value), torch.rand(2, 1300, device=DEVICE) < 0.5
    k = torch.tensor([3, 200], device=DEVICE)
    prefix, rest = torch.zeros_like(k), k
    for shift in range(16 * (digits - 1), -1, -16):
        histogram = histogram16(bits, keep, prefix, shift)
        at_least = histogram.flip(1).cumsum(1).flip(1)
        found = ((at_least >= rest.unsqueeze(1)).sum(1) - 1).unsqueeze(1)
        rest = rest - (at_least - histogram).gather(1, found).squeeze(1)
        prefix = (prefix << 16) | found.squeeze(1)
    ordered = torch.where(keep, bits, -1).sort(1, descending=True).values
    assert torch.equal(prefix, ordered.gather(1, (k - 1).unsqueeze(1)).squeeze(1))


def test_a_histogram_of_views_and_of_nothing() -> None:
    bits = torch.randint(1 << 30, (9, 4), device=DEVICE, dtype=torch.int32).T
    keep = torch.rand(9, 4, device=DEVICE).T < 0.5
    zero = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    assert torch.equal(
        histogram16(bits, keep, zero.expand(4), 16).cpu(), expected_histogram(bits, keep, zero.expand(4), 16)
    )
    assert not histogram16(bits, torch.zeros_like(keep), zero.expand(4), 16).any()
    assert not histogram16(bits[:, :0], keep[:, :0], zero.expand(4), 16).any()
    assert histogram16(bits[:0], keep[:0], zero[:0], 16).shape == (0, 65536)


@pytest.mark.parametrize(
    ("num_classes", "dtype"),
    [(2, torch.uint8), (3, torch.int16), (19, torch.int32), (150, torch.uint8), (1024, torch.int64)],
    ids=str,
)
def test_sums_and_counts_of_classes(num_classes: int, dtype: torch.dtype) -> None:
    target, keep = labels((2, 7, 31), num_classes, dtype)
    value = torch.where(keep, torch.rand(keep.shape, device=DEVICE), math.nan)
    check(value, target, keep, num_classes)


def check(value: Tensor, target: Tensor, keep: Tensor, num_classes: int) -> None:
    kept = target[keep].long().cpu()
    counts, sums = class_counts(target, keep, num_classes), class_sums(value, target, keep, num_classes)
    assert counts.dtype == torch.int64
    assert sums.dtype == torch.float64
    assert torch.equal(counts.cpu(), torch.bincount(kept, minlength=num_classes))
    exact = torch.bincount(kept, value[keep].double().cpu(), minlength=num_classes)
    torch.testing.assert_close(sums.cpu(), exact.double(), rtol=1e-13, atol=0)


def test_few_programs_take_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_select, "_PROGRAMS", 3)
    target, keep = labels((2, 1500), 5)
    check(torch.rand(2, 1500, device=DEVICE), target, keep, 5)


def test_views_and_no_pixels() -> None:
    target, keep = labels((3, 40), 4)
    check(torch.rand(40, 3, device=DEVICE).T, target, keep, 4)
    check(torch.rand(40, 1, device=DEVICE).expand(40, 3), target.T, keep.T, 4)
    check(torch.rand(0, 4, device=DEVICE), *labels((0, 4), 4), 4)
    check(torch.rand(3, 40, device=DEVICE), target, torch.zeros_like(keep), 4)


def test_operators_are_well_formed() -> None:
    target, keep = labels((2, 3), 5)
    ops = torch.ops.classbalance_losses
    torch.library.opcheck(ops.class_counts.default, (target, keep, 5))
    torch.library.opcheck(ops.class_sums.default, (torch.rand(2, 3, device=DEVICE), target, keep, 5))
    zero = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    torch.library.opcheck(ops.histogram16.default, (target.abs(), keep, zero, 16))


def test_compiles_whole() -> None:
    torch.compiler.reset()

    def shares(value: Tensor, target: Tensor, keep: Tensor) -> Tensor:
        return class_sums(value, target, keep, 5) / class_counts(target, keep, 5)

    args = (torch.rand(2, 30, device=DEVICE), *labels((2, 30), 5))
    compiled = torch.compile(shares, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*args), shares(*args))


@on_cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_neither_synchronises_nor_minds_capture() -> None:
    target, keep = labels((2, 4000), 5)
    value = torch.rand(2, 4000, device=DEVICE)
    zero = torch.zeros(2, dtype=torch.int64, device=DEVICE)

    def step() -> tuple[Tensor, ...]:
        histogram = histogram16(value.view(torch.int32), keep, zero, 16)
        return class_counts(target, keep, 5), class_sums(value, target, keep, 5), histogram

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


def share_of(fraction: float, at_least: int) -> Share:
    mantissa, exponent = math.frexp(fraction)
    head, tail = divmod(int(math.ldexp(mantissa, 53)), 1 << 26)
    return Share(head, tail, min(27 - exponent, 63), at_least)


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
