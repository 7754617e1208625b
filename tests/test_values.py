"""Values and gradients against the loops of references.py, where nothing is vectorised and nothing is shared."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from cases import CASES, CORE, Case, Sample, close, grad, over, sample
from hypothesis import given
from strategies import samples

LOOSE = {"rtol": 1e-7, "atol": 1e-10}


def check(case: Case, given_sample: Sample) -> None:
    """All three reductions and both gradients."""
    here, expected = given_sample.leaf(), case.expected(given_sample)
    pixel, total, mean = (case(here, reduction=reduction) for reduction in ("none", "sum", "mean"))
    assert pixel.shape == here.target.shape
    assert total.shape == mean.shape == ()
    close(pixel, expected.pixel, **LOOSE)
    close(total, expected.sum, **LOOSE)
    close(mean, expected.mean, **LOOSE)
    close(grad(mean, here), expected.mean_grad, **LOOSE)
    close(grad(total, here), expected.pixel_grad, **LOOSE)
    close(grad(pixel.sum(), here), expected.pixel_grad, **LOOSE)


@over(CASES)
@pytest.mark.parametrize("rank", range(4))
def test_every_rank(case: Case, rank: int) -> None:
    for weighted, ignored in product((False, True), (0.0, 0.3)):
        check(case, sample(rank, weighted=weighted, ignored=ignored, seed=rank))


@over(CASES)
def test_any_batch(case: Case) -> None:
    given(samples())(lambda drawn: check(case, drawn))()


@over(CASES)
@pytest.mark.parametrize("num_classes", [2, 3, 19])
def test_class_counts_from_two_up(case: Case, num_classes: int) -> None:
    check(case, sample(1, num_classes, shape=(2, 12), weighted=True))


@over(CASES)
@pytest.mark.parametrize("rank", range(4))
def test_single_pixel(case: Case, rank: int) -> None:
    check(case, sample(rank, shape=(1,) * (rank + 1), ignored=0.0))


@over(CASES)
def test_single_class_present(case: Case) -> None:
    one = sample(2)
    check(case, replace(one, target=torch.full_like(one.target, 2)))


@over(CASES)
def test_confidently_wrong_and_confidently_right(case: Case) -> None:
    """Probabilities of 1 - 1e-22 and their complements, far below the spacing of floats near 1."""
    logits = torch.tensor(
        [[50.0, 0.0, -30.0], [0.0, 50.0, 3.0], [-1.0, -50.0, 1.0], [0.5, 30.0, -20.0]], dtype=torch.float64
    )
    target = torch.tensor([1, 1, 1, 2])
    check(case, Sample(logits, target, features=torch.ones(4, 3, dtype=torch.float64)))


@over(CORE)
def test_module_is_its_functional_twin(case: Case) -> None:
    for reduction in ("none", "sum", "mean"):
        here = sample(2, weighted=True).leaf()
        by_module, by_function = case.by_module(here, reduction=reduction), case(here, reduction=reduction)
        assert torch.equal(by_module, by_function)
        assert torch.equal(grad(by_module.sum(), here), grad(by_function.sum(), here))


@over(CORE)
def test_inputs_are_left_alone(case: Case) -> None:
    here = sample(2, weighted=True).leaf()
    before = [
        t.detach().clone()
        for t in (here.input, here.target, here.pixel_weight, here.features)
        if t is not None
    ]
    case(here).backward()
    after = [t.detach() for t in (here.input, here.target, here.pixel_weight, here.features) if t is not None]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
