"""An ignored pixel is inert, and nothing at all is 0 with a graph."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from cases import CASES, CORE, Case, Sample, close, grad, over, sample
from torch import Tensor

NAN = float("nan")


@over(CASES)
@pytest.mark.parametrize("poison", [NAN, float("inf"), -float("inf")])
@pytest.mark.parametrize("rank", [0, 2])
def test_ignored_pixels_may_hold_anything(case: Case, poison: float, rank: int) -> None:
    here = sample(rank, ignored=0.4, weighted=True).leaf()
    assert here.pixel_weight is not None
    assert here.features is not None
    hole = ~here.valid

    def poisoned(x: Tensor) -> Tensor:
        return x.detach().masked_fill(hole if x.ndim == hole.ndim else hole.unsqueeze(1), poison)

    bad_weight = here.pixel_weight.masked_fill(hole, NAN)
    there = replace(
        here, input=poisoned(here.input), pixel_weight=bad_weight, features=poisoned(here.features)
    ).leaf()
    for reduction in ("none", "sum", "mean"):
        ours, clean = case(there, reduction=reduction), case(here, reduction=reduction)
        assert torch.equal(ours, clean)
        gradient = grad(ours.sum(), there)
        assert torch.equal(gradient, grad(clean.sum(), here))
        assert torch.equal(
            gradient.movedim(1, -1)[hole], torch.zeros(int(hole.sum()), here.num_classes).double()
        )
        if reduction == "none":
            assert torch.equal(ours[hole], torch.zeros_like(ours[hole]))


@over([case for case in CASES if case.loss != "LogitAdjustedLoss"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_soft_labels_of_nan_leave_out_a_pixel_whatever_it_holds(case: Case, reduction: str) -> None:
    """Its logits, its weight and its features."""
    here = sample(2, ignored=0.4, weighted=True).leaf()
    assert here.pixel_weight is not None
    assert here.features is not None
    hole = ~here.valid
    share = here.input.detach().softmax(1).masked_fill(hole.unsqueeze(1), NAN)
    clean = replace(here, target=share)
    there = replace(
        clean,
        input=here.input.detach().masked_fill(hole.unsqueeze(1), NAN),
        pixel_weight=here.pixel_weight.masked_fill(hole, NAN),
        features=here.features.masked_fill(hole.unsqueeze(1), NAN),
    ).leaf()
    ours, expected = case(there, reduction=reduction), case(clean, reduction=reduction)
    close(ours, expected.detach().numpy())
    close(grad(ours.sum(), there), grad(expected.sum(), clean).numpy())
    assert ours.isfinite().all()


@over(CORE)
def test_second_derivative_of_ignored_pixels_is_zero(case: Case) -> None:
    here = sample(1, ignored=0.4).leaf()
    hole = ~here.valid
    there = replace(here, input=here.input.detach().masked_fill(hole.unsqueeze(1), NAN)).leaf()
    (first,) = torch.autograd.grad(case(there), there.input, create_graph=True)
    second = grad((first * torch.randn_like(first)).sum(), there)
    assert torch.isfinite(second).all()
    assert not second.movedim(1, -1)[hole].any()


@over(CASES)
def test_labels_under_the_mask_do_not_matter(case: Case) -> None:
    """Ignoring pixels is the same as never having had them."""
    here = sample(0, shape=(14,), ignored=0.4, weighted=True)
    assert here.pixel_weight is not None
    assert here.features is not None
    keep = here.valid
    without = Sample(here.input[keep], here.target[keep], -100, here.pixel_weight[keep], here.features[keep])
    if case.settings(4).get("scope") == "image":
        pytest.skip(
            "here every pixel is an image, so that the number of images changes nothing but the shape"
        )
    close(case(here), case(without).item())


@over(CASES)
@pytest.mark.parametrize("ignore_index", [255, -1, 77])
def test_ignore_index_without_ignored_pixels_changes_nothing(case: Case, ignore_index: int) -> None:
    here = sample(2, ignored=0.0)
    assert torch.equal(case(here), case(replace(here, ignore_index=ignore_index)))


def nothing_to_learn() -> dict[str, Sample]:
    full = sample(2, weighted=True)
    ignored = replace(full, target=torch.full_like(full.target, -100))
    poisoned = replace(
        ignored, input=torch.full_like(full.input, NAN), features=torch.full_like(full.features, NAN)
    )
    return {
        "all-ignored": ignored,
        "all-ignored-nan": poisoned,
        "no-images": sample(2, shape=(0, 3, 4), weighted=True),
        "no-pixels": sample(2, shape=(2, 0, 4), weighted=True),
        "rank-0": sample(0, shape=(0,), weighted=True),
    }


@over(CASES)
@pytest.mark.parametrize("name", nothing_to_learn())
def test_nothing_to_learn_is_zero_with_a_graph(case: Case, name: str) -> None:
    here = nothing_to_learn()[name]
    for by, reduction in product((case.__call__, case.by_module), ("none", "sum", "mean")):
        there = here.leaf()
        loss = by(there, reduction=reduction)
        assert loss.requires_grad
        assert loss.shape == (here.target.shape if reduction == "none" else ())
        assert torch.equal(loss, torch.zeros_like(loss))
        assert torch.equal(grad(loss.sum(), there), torch.zeros_like(here.input))


@over(CASES)
def test_all_pixel_weights_zero(case: Case) -> None:
    here = sample(2)
    here = replace(here, pixel_weight=torch.zeros(here.target.shape, dtype=torch.float64)).leaf()
    loss = case(here)
    assert loss.item() == 0
    assert not grad(loss, here).any()


@over(CASES)
@pytest.mark.parametrize("poison", [NAN, float("inf")])
def test_a_valid_pixel_that_is_not_finite_is_not_hidden(case: Case, poison: float) -> None:
    """A diverged network shows: the loss is NaN, not a crash (on CUDA: a dead context), and not a number."""
    here = sample(2, ignored=0.0)
    logits = here.input.clone()
    logits[0, :, 0, 0] = poison
    assert case(here, input=logits).isnan()
