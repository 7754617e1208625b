"""Every closed form of g_c against autograd of its definition, through a real last layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import GRADIENTS, Sample, close, sample
from hypothesis import given
from references import class_gradient_norms as by_loops
from strategies import samples
from torch import Tensor, nn

from classbalance_losses.functional import (
    class_gradient_norms,
    gbw_class_weights,
    gbw_loss,
    solve_class_weights,
)

CLASSES, FEATURES = 4, 3


def closed_form(s: Sample, gradient: str) -> Tensor:
    return class_gradient_norms(
        s.input,
        s.target,
        gradient=gradient,
        pixel_weight=s.pixel_weight,
        ignore_index=s.ignore_index,
        features=s.features if gradient == "last_layer_weight" else None,
    )


def class_mean(s: Sample, logits: Tensor, c: int) -> Tensor:
    """l_c = 1/n_c sum of q_i CE_i over the pixels of class c."""
    own = s.target == c
    loss = F.cross_entropy(logits, s.target, ignore_index=s.ignore_index, reduction="none")
    if s.pixel_weight is not None:
        loss = loss * s.pixel_weight
    return torch.where(own, loss, 0).sum() / own.sum().clamp(min=1)


@pytest.fixture(params=[0, 2], ids=["rank0", "rank2"])
def network(request: pytest.FixtureRequest) -> tuple[nn.Linear, Sample]:
    """A last layer, and the sample whose logits it makes of the features."""
    s = sample(request.param, CLASSES, weighted=True)
    layer = nn.Linear(FEATURES, CLASSES, dtype=torch.float64)
    assert s.features is not None
    logits = layer(s.features.movedim(1, -1)).movedim(-1, 1)
    return layer, replace(s, input=logits)


@pytest.mark.parametrize("gradient", ["class_logits", "bias", "last_layer_weight"])
def test_reading_is_the_gradient_that_it_names(network: tuple[nn.Linear, Sample], gradient: str) -> None:
    layer, s = network
    variable = {"class_logits": s.input, "bias": layer.bias, "last_layer_weight": layer.weight}[gradient]
    norms = []
    for c in range(CLASSES):
        (slope,) = torch.autograd.grad(class_mean(s, s.input, c), variable, retain_graph=True)
        norms.append(slope.square().sum().item())
    close(closed_form(s, gradient), norms)


def test_pixel_mean_is_the_mean_of_each_pixels_squared_gradient() -> None:
    s = sample(1, weighted=True).leaf()
    assert s.pixel_weight is not None
    loss = s.pixel_weight * F.cross_entropy(s.input, s.target, reduction="none")
    (slope,) = torch.autograd.grad(loss.sum(), s.input)  # a pixel's loss sees its own logits alone
    norm = slope.square().sum(1)
    close(
        closed_form(s, "pixel_mean"), [norm[s.target == c].mean().nan_to_num().item() for c in range(CLASSES)]
    )


def test_loss_is_the_class_mean() -> None:
    s = sample(2, weighted=True)
    close(closed_form(s, "loss"), [class_mean(s, s.input, c).item() for c in range(CLASSES)])


def test_official_is_the_channel_norm_of_one_backward_of_all_class_losses() -> None:
    """As released: all class losses, each over n_c + 1, in one backward; the norm of every logit channel, squared."""
    s = sample(2, weighted=True).leaf()
    loss = F.cross_entropy(s.input, s.target, reduction="none")
    losses = [loss[s.target == c].sum() / ((s.target == c).sum() + 1) for c in range(CLASSES)]
    (slope,) = torch.autograd.grad(torch.stack(losses).sum(), s.input)
    close(closed_form(s, "official"), slope.movedim(1, 0).flatten(1).norm(dim=1).square().numpy())


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_loops_agree_on_any_batch(gradient: str) -> None:
    given(samples())(
        lambda s: close(closed_form(s, gradient), by_loops(s.batch(), gradient=gradient), atol=1e-10)
    )()


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_absent_and_ignored(gradient: str) -> None:
    s = sample(2, 5)
    s = replace(s, target=torch.where(s.target == 2, 0, s.target))
    norms = closed_form(s, gradient)
    assert (norms[2] > 0) if gradient == "official" else (norms[2] == 0)
    hole = ~s.valid
    poisoned = replace(s, input=s.input.masked_fill(hole.unsqueeze(1), float("nan")))
    assert s.features is not None
    poisoned = replace(poisoned, features=s.features.masked_fill(hole.unsqueeze(1), float("inf")))
    assert torch.equal(closed_form(poisoned, gradient), norms)
    nothing = replace(s, target=torch.full_like(s.target, -100))
    assert torch.equal(closed_form(nothing, gradient), torch.zeros(5).double())


@given(samples())
def test_relations_between_readings(drawn: Sample) -> None:
    s = replace(drawn, pixel_weight=None)
    mean, bias, logits = (closed_form(s, gradient) for gradient in ("pixel_mean", "bias", "class_logits"))
    count = torch.tensor(s.batch().class_counts())
    assert ((mean >= 0) & (mean <= 2)).all()
    assert (bias <= mean + 1e-12).all()  # Jensen
    close(logits * count, mean.numpy())


@given(samples())
def test_weights_of_the_default_lie_between_0_and_2(drawn: Sample) -> None:
    """With g in [0, 2] and lambda >= 1 the solution is interior."""
    s = replace(drawn, pixel_weight=None)
    v = gbw_class_weights(s.input, s.target, ignore_index=s.ignore_index)
    g = closed_form(s, "pixel_mean")
    close(v, (1 + (g - g.mean()) / 2).numpy())
    assert ((v >= 0) & (v <= 2)).all()
    close(v.sum(), float(s.num_classes))


@pytest.mark.parametrize("classes", ["all", "present"])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_class_weights_are_the_programme_of_the_norms(gradient: str, classes: str) -> None:
    s = sample(2, 6, weighted=True)
    keywords = {"gradient": gradient, "pixel_weight": s.pixel_weight}
    if gradient == "last_layer_weight":
        keywords["features"] = s.features
    v = gbw_class_weights(s.input, s.target, classes=classes, regularization=0.1, **keywords)
    g = closed_form(s, gradient)
    count = torch.tensor(s.batch().class_counts())
    part = count > 0 if classes == "present" else torch.ones(6, dtype=torch.bool)
    expected = torch.ones(6, dtype=torch.float64)
    expected[part] = solve_class_weights(g[part], regularization=0.1)
    close(v, expected.numpy())
    assert not v.requires_grad


def test_confidence_lowers_a_classs_norm() -> None:
    """Equation 12: q inside the gradient, squared, so a class of low confidence does not win its weight back."""
    s = sample(2, ignored=0.0)
    half = replace(s, pixel_weight=torch.where(s.target == 1, 0.5, 1.0).double())
    for gradient in ("pixel_mean", "class_logits", "bias"):
        before, after = closed_form(s, gradient), closed_form(half, gradient)
        close(after[1], before[1].item() / 4)
        assert torch.equal(after[[0, 2, 3]], before[[0, 2, 3]])
    close(closed_form(half, "official"), closed_form(s, "official").numpy())


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("classes", ["all", "present"])
def test_cvxpy_solver_gives_the_same_loss(classes: str) -> None:
    pytest.importorskip("cvxpy")
    s = sample(2, 5).leaf()
    settings = {"regularization": 0.1, "classes": classes}
    exact, solved = (
        gbw_loss(s.input, s.target, solver=solver, **settings) for solver in ("projection", "cvxpy")
    )
    close(solved, exact.item(), rtol=1e-4)
    assert solved.requires_grad
    nothing = torch.full_like(s.target, -100)
    assert gbw_loss(s.input, nothing, solver="cvxpy", **settings).item() == 0
