"""On whose threads compiled loops run: torch's OpenMP's, and their own where it has none to share."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import DEFAULTS, Case, grad, over, sample
from kernel_checks import WARNINGS

pytest.importorskip("numba", reason="numba is not installed")

from classbalance_losses import report, use_backend
from classbalance_losses.kernels.cpu import probe, threads

if threads.failure(torch.device("cpu")) is not None:
    pytest.skip("loops cannot run here", allow_module_level=True)

pytestmark = WARNINGS
NUMBER = 3


@pytest.fixture
def _many() -> Iterator[None]:
    former = torch.get_num_threads()
    torch.set_num_threads(NUMBER)
    yield
    torch.set_num_threads(former)


def took_part() -> int:
    """Return how many threads called a loop."""
    job = np.zeros(1, np.int64)
    threads.run(probe._take_one, job)
    return int(job[0])


def test_other_systems_have_none_to_share(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There torch's library has another name."""
    monkeypatch.setattr(threads, "_LIBRARY", tmp_path / "libtorch_cpu.so")
    assert threads._openmp.__wrapped__() is None


def test_a_torch_without_openmp_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda path: SimpleNamespace())
    assert threads._openmp.__wrapped__() is None


@pytest.mark.usefixtures("_many")
def test_as_many_as_torch_says_on_either(monkeypatch: pytest.MonkeyPatch) -> None:
    assert took_part() == NUMBER
    monkeypatch.setattr(threads, "_openmp", lambda: None)
    assert took_part() == NUMBER
    assert threads.failure(torch.device("cpu")) is None
    assert report.collect()["Backends"]["cpu"].startswith("runs on its own threads")
    torch.set_num_threads(1)
    assert took_part() == 1


@over(DEFAULTS)
@pytest.mark.usefixtures("_many")
def test_loops_on_their_own_threads_compute_the_same(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: no thread has a say in the order of sums."""
    here = sample(2, 5, shape=(2, 37, 41), dtype=torch.float32)
    found = []
    for openmp in (threads._openmp, lambda: None):
        monkeypatch.setattr(threads, "_openmp", openmp)
        leaf = here.leaf()
        with use_backend("cpu"):
            loss = case(leaf)
            found.append((loss, grad(loss, leaf)))
    (value, gradient), (expected, expected_gradient) = found
    assert torch.equal(value, expected)
    assert torch.equal(gradient, expected_gradient)


@pytest.mark.usefixtures("_many")
def test_threads_end_with_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_openmp", lambda: None)
    before = threading.active_count()
    assert took_part() == NUMBER
    assert threading.active_count() == before
