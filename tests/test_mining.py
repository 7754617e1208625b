"""The exact k-th largest loss, by histograms as for large maps and by sorting as for small ones, against a sort."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import mining_losses
from torch import Tensor

from classbalance_losses import use_backend
from classbalance_losses.functional import dyce_loss
from classbalance_losses.kernels import numba_threads
from classbalance_losses.ops import mining
from classbalance_losses.ops.mining import hardest

DTYPES = [torch.float32, torch.float64]
NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


@pytest.fixture(params=["histograms", "sorting", "digits", "compiled digits"], autouse=True)
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(mining, "_SHORT", 1 << 16 if request.param == "sorting" else 0)
    monkeypatch.setattr(mining, "_COMPILED_FROM", 0)
    if request.param == "digits":
        monkeypatch.setattr(numba_threads, "can_compile", lambda: False)
    with use_backend("blocked" if request.param.endswith("digits") else "reference"):
        yield


def by_sorting(loss: Tensor, keep: Tensor, fraction: float, min_kept: int) -> Tensor:
    valid = loss[keep].sort(descending=True).values
    k = min(max(min_kept, math.floor(fraction * valid.numel())), valid.numel())
    return keep & (loss >= valid[k - 1]) if k else torch.zeros_like(keep)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hardest_is_a_sort(dtype: torch.dtype) -> None:
    @given(
        mining_losses(NUMPY[dtype]),
        st.floats(0.0, 1.0),
        st.integers(0, 50),
        st.sampled_from([0.0, 0.3, 1.0]),
        st.randoms(),
    )
    def check(values: np.ndarray, fraction: float, min_kept: int, dropped: float, random: object) -> None:
        loss = torch.from_numpy(values)
        keep = torch.tensor([random.random() >= dropped for _ in values])  # type: ignore[attr-defined]
        hard = hardest(loss, keep, fraction=fraction, min_kept=min_kept)
        assert torch.equal(hard, by_sorting(loss, keep, fraction, min_kept))

    check()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "distribution", ["exponential", "tied", "all equal", "all zero", "tiny", "huge", "sorted"]
)
def test_hardest_on_large_inputs(dtype: torch.dtype, distribution: str) -> None:
    draw = {
        "exponential": lambda n: torch.rand(n, dtype=dtype).log().neg(),
        "tied": lambda n: torch.randint(0, 7, (n,)).to(dtype) / 3,
        "all equal": lambda n: torch.full((n,), 0.7, dtype=dtype),
        "all zero": lambda n: torch.zeros(n, dtype=dtype),
        "tiny": lambda n: torch.rand(n, dtype=dtype) * torch.finfo(dtype).tiny,
        "huge": lambda n: torch.rand(n, dtype=dtype) * torch.finfo(dtype).max,
        "sorted": lambda n: torch.arange(n, dtype=dtype),
    }[distribution]
    for n in (1, 2, 3, 10, 1000):
        loss, keep = draw(n), torch.rand(n) > 0.2
        for fraction in (0.0, 1e-9, 0.2, 0.5, 0.999, 1.0):
            hard = hardest(loss, keep, fraction=fraction)
            assert torch.equal(hard, by_sorting(loss, keep, fraction, 1)), (n, fraction)


@given(st.integers(0, 400), st.integers(0, 100))
def test_k_is_the_floor_in_float64(valid: int, percent: int) -> None:
    """0.29 * 100 is 28.999999999999996: the k of Python, of the paper's code, and of everyone who checks by hand."""
    fraction = percent / 100
    hard = hardest(
        torch.arange(valid, dtype=torch.float32),
        torch.ones(valid, dtype=torch.bool),
        fraction=fraction,
        min_kept=0,
    )
    assert int(hard.sum()) == math.floor(fraction * valid)


@given(mining_losses(), st.floats(0.0, 1.0))
def test_every_kept_loss_is_at_least_every_dropped_one(values: np.ndarray, fraction: float) -> None:
    loss = torch.from_numpy(values)
    hard = hardest(loss, torch.ones_like(loss, dtype=torch.bool), fraction=fraction)
    assert hard.any()
    if not hard.all():
        assert loss[hard].min() > loss[~hard].max()  # strictly: ties are all kept


def test_negative_zero_ties_with_zero() -> None:
    """-log(1) is -0.0 on some paths; as bits it would be the largest of all."""
    loss = torch.tensor([-0.0, 0.0, 1.0, 2.0])
    keep = torch.ones(4, dtype=torch.bool)
    assert hardest(loss, keep, fraction=0.5).tolist() == [False, False, True, True]
    assert hardest(loss, keep, fraction=0.75).all()


def test_infinite_losses_are_the_hardest() -> None:
    loss = torch.tensor([1.0, float("inf"), 3.0, float("inf")])
    assert hardest(loss, torch.ones(4, dtype=torch.bool), fraction=0.25).tolist() == [
        False,
        True,
        False,
        True,
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_image_scope_is_batch_scope_image_by_image(dtype: torch.dtype) -> None:
    loss, keep = torch.rand(4, 5, 6, dtype=dtype), torch.rand(4, 5, 6) > 0.3
    keep[2] = False
    for min_kept in (0, 1, 9, 100):
        hard = hardest(loss, keep, fraction=0.3, min_kept=min_kept, scope="image")
        for n in range(4):
            assert torch.equal(hard[n], hardest(loss[n], keep[n], fraction=0.3, min_kept=min_kept))


def test_kept_pixels_do_not_depend_on_what_is_dropped() -> None:
    loss, keep = torch.rand(50), torch.rand(50) > 0.5
    for junk in (float("nan"), float("inf"), -1.0):
        assert torch.equal(
            hardest(loss.masked_fill(~keep, junk), keep, fraction=0.4), hardest(loss, keep, fraction=0.4)
        )


def test_ties_make_the_loss_independent_of_the_order() -> None:
    """Two equally hard pixels of different classes at the threshold: both count."""
    logits = torch.zeros(6, 3)
    logits[0, 1] = 5.0  # one pixel is harder than the five others, which tie
    target = torch.tensor([0, 1, 2, 0, 1, 2])
    values = [
        dyce_loss(logits[p], target[p], hard_fraction=0.4) for p in (torch.arange(6), torch.arange(6).flip(0))
    ]
    torch.testing.assert_close(values[0], values[1])
    assert (dyce_loss(logits, target, hard_fraction=0.4, reduction="none") > 0).all()


@pytest.mark.parametrize("_way", ["sorting"], indirect=True)
def test_many_images_of_one_pixel_need_little_memory() -> None:
    """A histogram for each of 20 000 rows would take 10 GB."""
    loss = torch.rand(20_000)
    assert hardest(loss, loss > 0.5, fraction=0.5, scope="image").equal(loss > 0.5)
