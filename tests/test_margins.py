"""The cross-entropy of a sure pixel: log1p of the others' share, to float32's precision until the share itself is 0."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import NEUTRAL, Case, Sample, close, grad, over, sample
from torch import Tensor

from classbalance_losses import _dispatch, use_backend
from classbalance_losses.functional import weighted_cross_entropy_loss

OF_OWN_PROBABILITY = [case for case in NEUTRAL if not case.loss.startswith("Dual")]
INF = float("inf")


@pytest.fixture(params=["reference", "auto"], autouse=True)
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_dispatch, "_CPU_FROM", 0)
    with use_backend(request.param):
        yield


def margins(classes: int, most: float, dtype: torch.dtype, pixels: int = 400) -> Sample:
    """Labels whose logit is larger than the others' by up to ``most``, or smaller."""
    margin = torch.linspace(-most, most, pixels)
    target = torch.arange(pixels) % classes
    logits = torch.rand(pixels, classes).scatter_add(1, target.unsqueeze(1), margin.unsqueeze(1))
    return Sample(logits.to(dtype).T.unsqueeze(0).contiguous(), target.unsqueeze(0))


def exact(input: Tensor, target: Tensor) -> Tensor:
    """log(1 + Σ_{k≠y} e^{x_k − x_y}) in float64."""
    index = target.unsqueeze(1)
    others = input.double().scatter(1, index, -INF).logsumexp(1)
    gap = others - input.double().gather(1, index).squeeze(1)
    return gap.clamp(min=0) + torch.log1p(torch.exp(-gap.abs()))


def relative_error(loss: Tensor, truth: Tensor) -> float:
    return float(((loss.double() - truth) / truth).abs().max())


@over(OF_OWN_PROBABILITY)
@pytest.mark.parametrize("classes", [2, 5])
def test_small_losses_keep_their_digits(case: Case, classes: int) -> None:
    """A difference of about 80 is rounded by 4e-6, and that is a relative error of its exponential."""
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        most, bound = (700.0, 1e-12) if dtype == torch.float64 else (80.0, 1e-5)
        here = margins(classes, most, dtype)
        assert relative_error(case(here, reduction="none"), exact(here.input, here.target)) < bound


def test_interpolated_logits_keep_them_too() -> None:
    here = margins(3, 80.0, torch.float32, pixels=60)
    full = F.interpolate(here.input.double(), 120, mode="linear")  # by quarters, which are exact
    target = torch.arange(120).unsqueeze(0) % 3
    loss = weighted_cross_entropy_loss(here.input, target, upsample="linear", reduction="none")
    assert relative_error(loss, exact(full, target)) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_loss_falls_until_the_share_of_the_others_is_0(dtype: torch.dtype) -> None:
    margin = torch.arange(0, 87 if dtype == torch.float32 else 700, 0.5, dtype=dtype)
    logits = torch.stack([margin, torch.zeros_like(margin)], 1)
    loss = weighted_cross_entropy_loss(logits, torch.zeros(len(margin), dtype=torch.int64), reduction="none")
    assert (loss.diff() < 0).all()
    assert (loss > 0).all()


@over(OF_OWN_PROBABILITY)
def test_classes_that_are_ruled_out(case: Case) -> None:
    """All others: no loss and no gradient. The label's: an infinite loss, and the gradient of any mistake."""
    logits = torch.tensor([[1.0, -INF, -INF], [-INF, 1.0, 0.0], [0.0, 2.0, -INF]]).requires_grad_()
    here = Sample(logits, torch.tensor([0, 0, 1]), features=torch.ones(3, 3))
    loss = case(here, reduction="none")
    close(loss, [0, INF, np.log1p(np.exp(-2))], rtol=1e-6)
    p = logits.detach().softmax(1)
    close(grad(loss.sum(), here), (p - F.one_hot(here.target, 3)).numpy(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("_way", ["reference"], indirect=True)
def test_ruled_out_classes_have_every_derivative() -> None:
    logits = torch.tensor([[1.0, -INF, -INF], [0.0, 2.0, -INF], [30.0, 0.0, -INF]], dtype=torch.float64)
    target, direction = torch.tensor([0, 1, 0]), torch.randn(3, 3, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return weighted_cross_entropy_loss(x, target, reduction="none")

    p = logits.softmax(1)
    slope = p - F.one_hot(target, 3)
    close(torch.func.jvp(loss, (logits,), (direction,))[1], (slope * direction).sum(1).numpy(), atol=1e-12)
    close(torch.func.vmap(loss)(logits.expand(2, -1, -1))[1], loss(logits).numpy())
    curved = torch.func.jvp(torch.func.grad(lambda x: loss(x).sum()), (logits,), (direction,))[1]
    close(curved, (p * (direction - (p * direction).sum(1, keepdim=True))).numpy(), atol=1e-12)


def test_ignored_pixels_may_hold_anything() -> None:
    here = sample(2, dtype=torch.float32)
    for value in (float("nan"), INF, -INF):
        spoilt = replace(here, input=torch.where(here.valid.unsqueeze(1), here.input, value)).leaf()
        loss = weighted_cross_entropy_loss(spoilt.input, here.target, reduction="none")
        assert torch.equal(loss, weighted_cross_entropy_loss(here.input, here.target, reduction="none"))
        gradient = grad(loss.sum(), spoilt)
        assert torch.isfinite(gradient).all()
        assert not gradient[~here.valid.unsqueeze(1).expand_as(gradient)].any()
