"""The exact k-th largest loss, by histograms as for large maps and by sorting as for small ones, against a sort."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import mining_losses
from torch import Tensor

from classbalance_losses import _dispatch, use_backend
from classbalance_losses.kernels import selection
from classbalance_losses.kernels.factors import members
from classbalance_losses.ops.counts import kept_labels
from classbalance_losses.ops.mining import hardest

DTYPES = [torch.float32, torch.float64]
NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


@pytest.fixture(params=["histograms", "sorting", "loops"], autouse=True)
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(selection, "_SHORT", 1 << 16 if request.param == "sorting" else 0)
    monkeypatch.setattr(_dispatch, "_CPU_FROM", 0)
    with use_backend("auto" if request.param == "loops" else "reference"):
        yield


def by_sorting(loss: Tensor, keep: Tensor, fraction: float, min_kept: int) -> Tensor:
    """h in float64: 1 above the k-th largest; of those that equal it, what is left of k in equal parts."""
    valid = loss[keep].sort(descending=True).values
    k = min(max(min_kept, math.floor(fraction * valid.numel())), valid.numel())
    if not k:
        return torch.zeros_like(loss, dtype=torch.float64)
    above, tied = keep & (loss > valid[k - 1]), keep & (loss == valid[k - 1])
    return above.double() + tied * ((k - above.sum()).double() / tied.sum())


def shares(loss: Tensor, keep: Tensor, **settings: Any) -> Tensor:
    """h of each pixel, in float64."""
    labels = kept_labels(torch.zeros_like(keep, dtype=torch.int64), keep, 2)
    hard = hardest(loss, labels, backend=_dispatch.backend_for_maps(labels, loss), **settings)
    mask, tied = members(hard, keep)
    assert not (tied & ~mask).any()
    assert not (mask & ~keep).any()
    share = hard.share.double().view(-1, *[1] * (loss.ndim - 1))
    return torch.where(tied, share, mask.double())


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
        found = shares(loss, keep, fraction=fraction, min_kept=min_kept)
        torch.testing.assert_close(found, by_sorting(loss, keep, fraction, min_kept), rtol=1e-6, atol=0)

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
            found, expected = shares(loss, keep, fraction=fraction), by_sorting(loss, keep, fraction, 1)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
            assert found.sum().item() == pytest.approx(round(expected.sum().item()), rel=1e-6)  # k


@given(st.integers(0, 400), st.integers(0, 100))
def test_k_is_the_floor_in_float64(valid: int, percent: int) -> None:
    """0.29 * 100 is 28.999999999999996: the k of Python, of the paper's code, and of everyone who checks by hand."""
    fraction = percent / 100
    loss, keep = torch.arange(valid, dtype=torch.float32), torch.ones(valid, dtype=torch.bool)
    assert shares(loss, keep, fraction=fraction, min_kept=0).sum() == math.floor(fraction * valid)


@pytest.mark.parametrize("_way", ["sorting"], indirect=True)
def test_k_needs_no_float64() -> None:
    """For all that people write, and what nobody does, up to more pixels than a float32 can count."""
    few, many = torch.arange(3000), torch.randint(1 << 33, (5000,))
    written = [i / 100 for i in range(1, 101)] + [0.001, 0.125, 1 / 3, 0.333, 1e-9]
    odd = [
        5e-324,
        math.nextafter(0.5, 0),
        math.nextafter(1, 0),
        *torch.rand(50, dtype=torch.float64).tolist(),
    ]
    for fraction in written + odd:
        near = (few.double() / fraction).round().clamp(max=1 << 33).long()  # whole products, or nearly
        for count in (few, many, near, near + 1):
            expected = (count.double() * fraction).floor().long()
            assert torch.equal(selection.floored_product(count, fraction), expected), fraction


@given(mining_losses(), st.floats(0.0, 1.0))
def test_every_kept_loss_is_at_least_every_dropped_one(values: np.ndarray, fraction: float) -> None:
    loss = torch.from_numpy(values)
    share = shares(loss, torch.ones_like(loss, dtype=torch.bool), fraction=fraction)
    mask, tied = share > 0, (share > 0) & (share < 1)
    assert mask.any()
    assert (loss[mask].min() == loss[tied]).all()
    if not mask.all():
        assert loss[mask].min() > loss[~mask].max()  # strictly: ties all take part


def test_negative_zero_ties_with_zero() -> None:
    """-log(1) is -0.0 on some paths; as bits it would be the largest of all."""
    loss = torch.tensor([-0.0, 0.0, 1.0, 2.0])
    keep = torch.ones(4, dtype=torch.bool)
    assert shares(loss, keep, fraction=0.5).tolist() == [0, 0, 1, 1]
    assert shares(loss, keep, fraction=0.75).tolist() == [0.5, 0.5, 1, 1]


def test_infinite_losses_are_the_hardest() -> None:
    loss = torch.tensor([1.0, float("inf"), 3.0, float("inf")])
    assert shares(loss, torch.ones(4, dtype=torch.bool), fraction=0.25).tolist() == [0, 0.5, 0, 0.5]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_is_harder_than_any_number(dtype: torch.dtype) -> None:
    """Whatever its sign and payload: bits are compared, and no float is."""
    nan = torch.tensor([float("nan")] * 3, dtype=dtype)
    whole = nan.view(torch.int64 if dtype == torch.float64 else torch.int32)
    whole[1] += 5
    nan[2].neg_()
    loss = torch.cat([torch.tensor([1.0, float("inf"), 3.0], dtype=dtype), nan])
    for k in range(1, 7):
        found = shares(loss, torch.ones(6, dtype=torch.bool), fraction=1e-9, min_kept=k)
        assert found.sum().item() == pytest.approx(k)
        assert found[3:].sum().item() == pytest.approx(min(k, 3))
        assert found[1] == (k > 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_image_scope_is_batch_scope_image_by_image(dtype: torch.dtype) -> None:
    loss, keep = torch.rand(4, 5, 6, dtype=dtype), torch.rand(4, 5, 6) > 0.3
    loss, keep[2] = torch.where(loss < 0.8, loss.round(decimals=1), loss), False
    for min_kept in (0, 1, 9, 100):
        found = shares(loss, keep, fraction=0.3, min_kept=min_kept, rows=4)
        for n in range(4):
            alone = shares(loss[n : n + 1], keep[n : n + 1], fraction=0.3, min_kept=min_kept)
            assert torch.equal(found[n : n + 1], alone)


def test_kept_pixels_do_not_depend_on_what_is_dropped() -> None:
    loss, keep = torch.rand(50), torch.rand(50) > 0.5
    for junk in (float("nan"), float("inf"), -1.0):
        assert torch.equal(
            shares(loss.masked_fill(~keep, junk), keep, fraction=0.4), shares(loss, keep, fraction=0.4)
        )


@pytest.mark.parametrize("_way", ["sorting"], indirect=True)
def test_many_images_of_one_pixel_need_little_memory() -> None:
    """A histogram for each of 20 000 rows would take 10 GB."""
    loss = torch.rand(20_000)
    assert shares(loss, loss > 0.5, fraction=0.5, rows=20_000).equal((loss > 0.5).double())
