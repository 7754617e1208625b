"""Huge pages for large gradients: asked for, and given up where the first ones are dear."""

from __future__ import annotations

import mmap
import sys

import pytest
import torch

from classbalance_losses.kernels import memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="advice is given to Linux alone")
LARGE, SMALL = 3 << 20, 1 << 19  # floats: 12 MiB and 2 MiB


@pytest.fixture
def advice(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    given: list[int] = []
    monkeypatch.setattr(memory, "_madvise", lambda start, length, advice: given.append(advice))
    return given


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(1e-4, [mmap.MADV_HUGEPAGE]), (1e-2, [mmap.MADV_HUGEPAGE, mmap.MADV_NOHUGEPAGE])],
)
def test_advice_is_withdrawn_where_a_page_is_dear(monkeypatch, advice, seconds, expected) -> None:
    monkeypatch.setattr(memory, "_seconds_of_a_page", lambda start, end: seconds)
    assert memory.empty_like(torch.empty(LARGE)).shape == (LARGE,)
    assert advice == expected


def test_small_tensors_are_left_alone(advice) -> None:
    memory.empty_like(torch.empty(SMALL))
    assert advice == []


def test_looking_writes_two_bytes_inside() -> None:
    values = torch.full((LARGE * 4,), 7, dtype=torch.uint8)
    start = values.data_ptr() + 4096
    assert memory._seconds_of_a_page(start, values.data_ptr() + values.numel()) > 0
    changed = (values != 7).nonzero().flatten() + values.data_ptr()
    assert len(changed) == 2
    assert all(place % (1 << 21) == 0 for place in changed.tolist())
    assert changed[0] >= start
