"""Finite differences, double backward, and torch.func."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from cases import CASES, CONSTANT, CORE, DEFAULTS, Case, Sample, close, grad, over, sample
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from classbalance_losses.functional import weighted_cross_entropy_loss

SMALL = [
    sample(0, 3, shape=(5,), ignored=0.0, scale=1.0),
    sample(2, 3, shape=(2, 2, 2), weighted=True, scale=1.0, seed=3),
]


def of_input(case: Case, s: Sample, **settings: str) -> Callable[[Tensor], Tensor]:
    return lambda z: case(s, input=z, **settings)


@over(CONSTANT)
@pytest.mark.parametrize("s", SMALL, ids=["rank0", "rank2"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_gradcheck(case: Case, s: Sample, reduction: str) -> None:
    assert gradcheck(of_input(case, s, reduction=reduction), s.leaf().input)


@over(CONSTANT)
@pytest.mark.parametrize("s", SMALL, ids=["rank0", "rank2"])
def test_gradgradcheck(case: Case, s: Sample) -> None:
    assert gradgradcheck(of_input(case, s), s.leaf().input)


@over([case for case in CASES if not case.constant and case.variant != "smoothing"])
def test_moving_weights_are_constants_to_both_backwards(case: Case) -> None:
    """GBW's weights follow the logits, but no gradient does: it is that of CE with those weights frozen."""
    here = sample(2, weighted=True).leaf()
    weight = torch.tensor(case.expected(here).notes["class_weight"], dtype=torch.float64)
    if case.settings(here.num_classes).get("apply") == "class":
        count = torch.tensor(here.batch().class_counts())
        weight = torch.where(count > 0, weight * here.valid.sum() / count.clamp(min=1), 0)
    frozen = weighted_cross_entropy_loss(
        here.input, here.target, weight, normalize="pixels", pixel_weight=here.pixel_weight
    )
    direction = torch.randn_like(here.input)

    def derivatives(loss: Tensor) -> tuple[Tensor, Tensor]:
        (first,) = torch.autograd.grad(loss, here.input, create_graph=True)
        return first, grad((first * direction).sum(), here)

    for ours, theirs in zip(derivatives(case(here)), derivatives(frozen), strict=True):
        close(ours, theirs.detach().numpy(), rtol=1e-8)


def stacked(count: int = 3) -> tuple[list[Sample], Sample]:
    """Three samples, and the same with one more leading axis for vmap."""
    loose = [sample(2, weighted=True, seed=seed) for seed in range(count)]

    def stack(name: str) -> Tensor:
        return torch.stack([getattr(s, name) for s in loose])

    names = ("input", "target", "pixel_weight", "features")
    return loose, Sample(**{name: stack(name) for name in names})


def arguments(case: Case, s: Sample) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The loss as a function of tensors alone, as torch.func wants it."""
    keywords = case.keywords(sample(2))

    def loss(z: Tensor, t: Tensor, q: Tensor, f: Tensor) -> Tensor:
        features = {"features": f} if case.features else {}
        return case.function(z, t, pixel_weight=q, **features, **keywords)

    assert s.pixel_weight is not None
    assert s.features is not None
    return loss, (s.input, s.target, s.pixel_weight, s.features)


@over(CORE)
def test_vmap_is_a_loop(case: Case) -> None:
    loose, batch = stacked()
    loss, tensors = arguments(case, batch)
    close(torch.func.vmap(loss)(*tensors), [case(s).item() for s in loose])


@over(CORE)
def test_func_grad_is_backward(case: Case) -> None:
    here = sample(2, weighted=True).leaf()
    loss, tensors = arguments(case, here)
    close(torch.func.grad(loss)(*tensors), grad(case(here), here).numpy())


@over(CORE)
def test_vmap_of_grad_is_a_loop(case: Case) -> None:
    loose, batch = stacked()
    loss, tensors = arguments(case, batch)
    expected = [grad(case(leaf), leaf).numpy() for leaf in (s.leaf() for s in loose)]
    close(torch.func.vmap(torch.func.grad(loss))(*tensors), expected)


@over(DEFAULTS)
def test_module_under_func(case: Case) -> None:
    """And afterwards the module is as usable as before: no wrapped tensor stays in a buffer."""
    here = sample(2).leaf()
    module = case.build(here)
    expected = grad(case(here), here)
    close(torch.func.grad(lambda z: module(z, here.target))(here.input), expected.numpy())
    loose, batch = stacked()
    ours = torch.func.vmap(torch.func.grad(module))(batch.input, batch.target)
    close(
        ours,
        [grad(case(replace(leaf, pixel_weight=None)), leaf).numpy() for leaf in (s.leaf() for s in loose)],
    )
    close(grad(module(here.input, here.target), here), expected.numpy())
    assert all(
        torch.isfinite(buffer).all() for buffer in module.state_dict().values() if torch.is_tensor(buffer)
    )
