"""DyCE where losses tie: H holds exactly k pixels' worth, and nothing hangs on the order of pixels or on rounding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from cases import CASES, Case, Sample, close, grad, over, sample
from torch import Tensor

from classbalance_losses import _dispatch, use_backend
from classbalance_losses.functional import dyce_loss
from classbalance_losses.kernels import selection

DYCE = [case for case in CASES if case.loss == "DyCELoss"]
WAYS = {"sorting": "reference", "histograms": "reference", "loops": "auto"}
SCOPES = ("batch", "image")


@pytest.fixture(params=WAYS, autouse=True)
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(selection, "_SHORT", 1 << 16 if request.param == "sorting" else 0)
    monkeypatch.setattr(_dispatch, "_CPU_FROM", 0)
    with use_backend(WAYS[request.param]):
        yield


def tied(dtype: torch.dtype = torch.float32, *, weighted: bool = False, ignored: float = 0.25) -> Sample:
    """Five losses, of which float32 rounds the smallest to 0, that many pixels of each class have."""
    here = sample(2, shape=(2, 6, 7), weighted=weighted, ignored=ignored)
    margin = torch.tensor([-2.0, 0.0, 1.0, 5.0, 120.0])[torch.randint(5, (2, 6, 7))]
    index = torch.where(here.valid, here.target, 0).unsqueeze(1)
    logits = torch.zeros_like(here.input).scatter(1, index, margin.double().unsqueeze(1))
    return replace(here, input=logits.to(dtype))


@over(DYCE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_ties_share_what_is_left(case: Case, dtype: torch.dtype, weighted: bool) -> None:
    """Against the loops, whose H takes pixels one by one."""
    here = tied(dtype, weighted=weighted).leaf()
    expected = case.expected(here)
    near = {"rtol": 1e-5, "atol": 1e-7} if dtype == torch.float32 else {}
    term, mean = case(here, reduction="none"), case(here)
    close(term, expected.pixel, **near)
    close(mean, expected.mean, **near)
    close(grad(mean, here), expected.mean_grad, **near)
    close(grad(term.sum(), here), expected.pixel_grad, **near)


@over(DYCE)
def test_the_order_of_pixels_is_irrelevant(case: Case) -> None:
    here = tied(weighted=True)
    order = torch.randperm(42)

    def moved(x: Tensor) -> Tensor:
        return x.flatten(-2)[..., order].view_as(x)

    assert here.pixel_weight is not None
    there = replace(
        here, input=moved(here.input), target=moved(here.target), pixel_weight=moved(here.pixel_weight)
    )
    close(case(there), case(here), rtol=1e-6)
    close(case(there, reduction="none"), moved(case(here, reduction="none")), rtol=1e-6)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.77, 1.0])
def test_h_is_k_pixels(scope: str, fraction: float) -> None:
    """With ω = 1 the terms are h_i ℓ_i: Σ h_i is k, over the batch or in each image."""
    here = tied(torch.float64)
    common = {"omega": 1.0, "scope": scope, "ignore_index": here.ignore_index, "reduction": "none"}
    term, loss = (dyce_loss(here.input, here.target, hard_fraction=f, **common) for f in (fraction, 1.0))
    share = torch.where(here.valid, term / loss, 0)
    assert ((share >= 0) & (share <= 1)).all()
    valid = here.valid.sum((1, 2)) if scope == "image" else here.valid.sum()
    size = share.sum((1, 2)) if scope == "image" else share.sum()
    close(size, (fraction * valid.double()).floor().clamp(min=1))


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("omega", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("level", [0.0, 120.0])
def test_equal_losses_give_their_classes_shares(scope: str, omega: float, level: float) -> None:
    """Σ_c π_c^ω ℓ, whatever k: H has the classes' shares of the image. Many pixels are in H by less than 1."""
    here = sample(2, shape=(2, 6, 7), ignored=0.0)
    target = here.target[:1].expand(2, -1, -1)
    logits = torch.zeros_like(here.input).scatter(1, target.unsqueeze(1), level)
    share = torch.bincount(target.flatten(), minlength=4) / target.numel()
    expected = (share.double() ** omega).sum() * math.log1p(3 * math.exp(-level))
    for fraction in (0.03, 0.2, 0.5, 0.9):
        common = {"omega": omega, "hard_fraction": fraction, "scope": scope}
        close(dyce_loss(logits, target, **common), expected, rtol=1e-6)
        flat = dyce_loss(logits, target, normalize="unit", **common)
        close(flat, math.log1p(3 * math.exp(-level)), rtol=1e-6)


@pytest.mark.parametrize(("omega", "mixed"), [(1.0, True), (0.5, False), (0.0, False)])
@pytest.mark.parametrize("scope", SCOPES)
def test_losses_that_become_0_change_nothing(omega: float, mixed: bool, scope: str) -> None:
    """A third of the pixels is hard. Of the rest, a quarter of which fills H, the losses tend to 0, and then are 0.

    For ω < 1 the classes share the margin; where one passes another the counts jump, in exact arithmetic too.
    """
    pixels = 297
    target = torch.arange(pixels).expand(2, -1) % 3
    hard = torch.arange(pixels) < 99
    surer = torch.arange(pixels) >= 198  # one of two crowds
    ahead = 3.0 * surer + torch.rand(pixels) * mixed
    values = []
    for margin in (15, 16, 18, 25, 40, 80, 84, 86, 87, 88, 90, 100, 102, 103, 104, 110, 120):
        own = torch.where(hard, torch.linspace(-3, 2, pixels), margin + ahead)
        logits = torch.zeros(2, 3, pixels).scatter(1, target.unsqueeze(1), own.expand(2, -1).unsqueeze(1))
        values.append(dyce_loss(logits, target, omega=omega, hard_fraction=0.5, scope=scope))
    close(torch.stack(values), values[0].expand(len(values)), rtol=1e-6)


@over(DYCE)
def test_weight_0_is_ignored(case: Case) -> None:
    """No candidate for H, not in k, and its logits may be anything."""
    weighted = tied(weighted=True)
    assert weighted.pixel_weight is not None
    out = torch.rand(weighted.target.shape) < 0.4
    weight = torch.where(out, 0, weighted.pixel_weight.clamp(min=0.25))
    junk = torch.where(out.unsqueeze(1), torch.nan, weighted.input)
    masked = replace(weighted, input=junk, pixel_weight=weight).leaf()
    ignored = replace(weighted, target=torch.where(out, -100, weighted.target), pixel_weight=weight).leaf()
    for reduction in ("none", "sum", "mean"):
        ours, theirs = case(masked, reduction=reduction), case(ignored, reduction=reduction)
        assert torch.equal(ours, theirs)
        assert torch.equal(grad(ours.sum(), masked), grad(theirs.sum(), ignored))


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("normalize", ["paper", "unit"])
def test_k_of_0_is_an_empty_h(scope: str, normalize: str) -> None:
    """0 in the graph, beside an infinite loss too."""
    here = tied()
    here.input[0, 2] = -torch.inf
    leaf = here.leaf()
    for reduction in ("none", "sum", "mean"):
        options = {"scope": scope, "normalize": normalize, "reduction": reduction}
        loss = dyce_loss(leaf.input, leaf.target, hard_fraction=1e-3, min_kept=0, **options)
        assert not loss.any()
        assert not grad(loss.sum(), leaf).any()


@over(DYCE)
def test_nan_stays_nan(case: Case) -> None:
    here = tied(ignored=0.0)
    here.input[1, 0, 3, 3] = torch.nan
    assert case(here).isnan()


@pytest.mark.parametrize("easy", [0.75, 0.79, 0.81, 0.85])
@pytest.mark.parametrize("omega", [0.0, 0.5, 1.0])
def test_without_ties_it_is_float64s_top_k(easy: float, omega: float) -> None:
    """Most pixels so sure that the largest of their losses is 1e-9: the hardest fifth is still known."""
    target = torch.randint(4, (1, 64, 64))
    margin = torch.where(torch.rand(1, 64, 64) < easy, 25.0, torch.rand(1, 64, 64) * 6)
    logits = torch.randn(1, 4, 64, 64).scatter_add(1, target.unsqueeze(1), margin.unsqueeze(1))
    exact = torch.nn.functional.cross_entropy(logits.double(), target, reduction="none").flatten()
    top = exact.topk(int(0.2 * exact.numel())).indices
    label = target.flatten()[top]
    count = torch.bincount(label, minlength=4).double()
    expected = (count[label] ** (omega - 1) * exact[top]).sum() / count.sum() ** omega
    close(dyce_loss(logits, target, omega=omega), expected, rtol=1e-5)
