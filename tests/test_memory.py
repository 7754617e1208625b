"""Huge pages for large gradients: asked for, and given up where they are dear."""

from __future__ import annotations

import math
import mmap
import sys

import pytest
import torch

from classbalance_losses.kernels import memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="advice is given to Linux alone")
LARGE, SMALL = 10 << 20, 1 << 19  # floats: 40 MiB and 2 MiB
HUGE = 1 << 21


@pytest.fixture
def advice(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    given: list[int] = []
    monkeypatch.setattr(memory, "_madvise", lambda start, length, advice: given.append(advice))
    return given


@pytest.mark.parametrize(
    ("dear", "withdrawn"), [((), False), ((1,), False), ((1, 3), True), (range(4), True)]
)
def test_advice_is_withdrawn_where_two_pages_are_dear(monkeypatch, advice, dear, withdrawn) -> None:
    tried = iter(range(LARGE))
    monkeypatch.setattr(memory, "_seconds_of_a_write", lambda place: 1e-2 if next(tried) in dear else 1e-4)
    assert memory.empty_like(torch.empty(LARGE)).shape == (LARGE,)
    assert advice == [mmap.MADV_HUGEPAGE] + [mmap.MADV_NOHUGEPAGE] * withdrawn


def test_small_tensors_are_left_alone(advice) -> None:
    memory.empty_like(torch.empty(SMALL))
    assert advice == []


def test_a_few_pages_all_over_the_range_are_tried(monkeypatch) -> None:
    monkeypatch.setattr(memory, "_DEAR", math.inf)
    values = torch.full((LARGE * 4,), 7, dtype=torch.uint8)
    start, end = values.data_ptr() + 4096, values.data_ptr() + values.numel()
    assert not memory._are_dear(start, end)
    changed = (values != 7).nonzero().flatten() + values.data_ptr()
    assert len(changed) == 4  # of 19 or 20 pages
    assert all(place % HUGE == 0 for place in changed.tolist())
    assert start <= changed[0] < start + HUGE
    assert end - len(values) // 4 <= changed[-1] < end
