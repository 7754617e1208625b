"""Half inputs, extreme logits, autocast, sums of many pixels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import CASES, CORE, Case, Sample, close, grad, over, sample
from torch import Tensor, nn

from classbalance_losses import DualFocalLoss, FocalLoss, use_backend
from classbalance_losses.functional import dual_focal_loss, focal_loss
from classbalance_losses.ops.counts import class_sums

HALVES = [torch.float16, torch.bfloat16]


@over(CASES)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_logits(case: Case, dtype: torch.dtype) -> None:
    """The loss of the rounded logits to float32's precision; the gradient in the logits' own dtype."""
    here = sample(2, weighted=True, dtype=dtype).leaf()
    expected = case.expected(here)
    loss = case(here)
    assert loss.dtype == torch.float32
    close(loss, expected.mean, rtol=2e-5, atol=1e-6)
    gradient = grad(loss, here)
    assert gradient.dtype == dtype
    eps = torch.finfo(dtype).eps
    close(gradient, expected.mean_grad, rtol=eps, atol=1e-6)
    assert case(here, reduction="none").dtype == torch.float32


@over(CASES)
def test_float32_is_within_float32_of_the_reference(case: Case) -> None:
    here = sample(2, weighted=True, dtype=torch.float32).leaf()
    expected = case.expected(here)
    loss = case(here)
    assert loss.dtype == torch.float32
    close(loss, expected.mean, rtol=1e-5, atol=1e-6)
    close(grad(loss, here), expected.mean_grad, rtol=1e-4, atol=1e-6)


@over(CASES)
def test_float64_stays_float64(case: Case) -> None:
    here = sample(2).leaf()
    assert (
        case(here).dtype
        == case(here, reduction="none").dtype
        == grad(case(here), here).dtype
        == torch.float64
    )


def extremes(dtype: torch.dtype, classes: int = 4) -> Sample:
    """Every pattern of +-1e4 and 0 over the classes, with every label."""
    rows = torch.cartesian_prod(*[torch.tensor([-1e4, 0.0, 1e4])] * classes)
    logits = rows.repeat_interleave(classes, 0).T.unsqueeze(0)  # one image, its pixels in a row
    target = torch.arange(classes).repeat(len(rows)).unsqueeze(0)
    return Sample(logits.to(dtype), target, features=torch.ones(1, 3, target.shape[1]).to(dtype)).leaf()


@over(CASES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_extreme_logits_stay_finite(case: Case, dtype: torch.dtype) -> None:
    here = extremes(dtype)
    for reduction in ("none", "sum", "mean"):
        loss = case(here, reduction=reduction)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(grad(loss.sum() / 1e3, here)).all()


@over(CASES)
def test_extreme_logits_double_backward_stays_finite(case: Case) -> None:
    here = extremes(torch.float32)
    (first,) = torch.autograd.grad(case(here), here.input, create_graph=True)
    assert torch.isfinite(grad((first * torch.randn_like(first)).sum(), here)).all()


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 0.9, 1.0, 2.0])
@pytest.mark.parametrize("margin", [20.0, 40.0, 90.0, 1e3, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_focal_at_saturation(gamma: float, margin: float, dtype: torch.dtype) -> None:
    """(1 - p)^(gamma - 1) is infinite at p = 1; the gradient is 0 there. MONAI, torchvision and others give NaN."""
    z = torch.tensor([[margin, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    for loss in (focal_loss, dual_focal_loss):
        value = loss(z, torch.tensor([0]), gamma=gamma)
        (gradient,) = torch.autograd.grad(value, z)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()
        if loss is focal_loss:
            assert (
                gradient.abs().max() <= 1.4 * (2 * torch.exp(torch.tensor(-margin))) ** min(gamma, 1.0) + 1e-6
            )
            assert value >= 0


def test_dual_focal_of_a_confident_mistake_grows_linearly() -> None:
    """-log(1 - p_j) at p_j = 1 - e^-a is a: it is neither infinite nor clamped."""
    for margin in (30.0, 100.0, 1e4):
        z = torch.tensor([[margin, 0.0, -margin]], requires_grad=True)
        value = DualFocalLoss(alpha=0.0)(z, torch.tensor([1]))
        assert value.item() == pytest.approx(
            2 * margin, rel=1e-6
        )  # -log p_y and -log(1 - p_0), both `margin`
        (gradient,) = torch.autograd.grad(value, z)
        torch.testing.assert_close(gradient, torch.tensor([[2.0, -2.0, 0.0]]), atol=1e-5, rtol=0)


def test_focal_gradient_exceeds_cross_entropys_for_hard_pixels() -> None:
    """formulas: the factor F(p) reaches 1.22 at p = .104 for gamma = 2."""
    p = torch.tensor(0.104, dtype=torch.float64)
    z = torch.stack([p.log(), (1 - p).log()])[None].requires_grad_()
    (gradient,) = torch.autograd.grad(FocalLoss(gamma=2.0)(z, torch.tensor([0])), z)
    assert (gradient[0, 1] / (1 - p)).item() == pytest.approx(1.22, abs=5e-3)


@over(CORE)
def test_autocast(case: Case) -> None:
    """Under autocast the loss is what it is outside, and half activations give a float32 loss."""
    here = sample(2, weighted=True, dtype=torch.float32).leaf()
    outside = case(here)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = case(here)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)
    assert torch.equal(grad(inside, here), grad(outside, here))


@over(CORE)
def test_autocast_network(case: Case) -> None:
    here = sample(2, weighted=True, dtype=torch.float32)
    net, loss_fn = nn.Conv2d(3, here.num_classes, 1), case.build(here)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = net(here.features)
        assert logits.dtype == torch.bfloat16
        loss: Tensor = case.by_module(replace(here, input=logits), loss_fn)
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("value", ["random", "constant", "skewed"])
def test_class_sums_of_a_million_pixels_keep_their_digits(backend: str, value: str) -> None:
    """In float32, though added one by one they would lose three of seven digits."""
    size = 1 << 20
    values = {
        "random": torch.rand(size),
        "constant": torch.full((size,), 0.1),
        "skewed": torch.randn(size).mul(4).exp(),
    }[value]
    target, keep = (torch.rand(size) ** 3 * 5).long(), torch.rand(size) < 0.9
    exact = torch.zeros(5, dtype=torch.float64).scatter_add(0, target[keep], values[keep].double())
    with use_backend(backend):
        sums = class_sums(values, target, keep, 5)
    assert sums.dtype == torch.float32
    close(sums, exact.numpy(), rtol=2e-6)
