"""Neutral settings are F.cross_entropy, for every combination of ignored pixels, weights, reduction and rank."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from cases import NEUTRAL, Case, Sample, class_vector, close, grad, over, sample
from torch import Tensor

from classbalance_losses.functional import weighted_cross_entropy_loss

REDUCTIONS = ("none", "sum", "mean")


def cross_entropy(s: Sample, reduction: str, *, mines: bool = False) -> Tensor:
    """F.cross_entropy, with the pixel weights put in by hand; a loss that mines does not count pixels of weight 0."""
    if s.pixel_weight is None:
        return F.cross_entropy(s.input, s.target, ignore_index=s.ignore_index, reduction=reduction)
    weighted = s.pixel_weight * F.cross_entropy(
        s.input, s.target, ignore_index=s.ignore_index, reduction="none"
    )
    if reduction == "none":
        return weighted
    counted = s.valid & (s.pixel_weight != 0) if mines else s.valid
    return weighted.sum() / (counted.sum() if reduction == "mean" else 1)


@over(NEUTRAL)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("rank", range(4))
def test_neutral_settings_are_cross_entropy(case: Case, rank: int, reduction: str) -> None:
    for ignored, weighted, ignore_index in product((0.0, 0.4), (False, True), (-100, 255, 1)):
        here = sample(
            rank, ignored=ignored, weighted=weighted, ignore_index=ignore_index, seed=rank + 7
        ).leaf()
        theirs = cross_entropy(here, reduction, mines=case.loss == "DyCELoss")
        ours = case(here, reduction=reduction)
        close(ours, theirs.detach().numpy())
        close(grad(ours.sum(), here), grad(theirs.sum(), here).numpy())


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("rank", range(4))
@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("weighted", [False, True], ids=["uniform", "class-weight"])
def test_weighted_cross_entropy_is_torchs(
    rank: int, smoothing: float, weighted: bool, reduction: str
) -> None:
    for ignored, ignore_index in product((0.0, 0.4), (-100, 255, 0)):
        here = sample(rank, ignored=ignored, ignore_index=ignore_index, seed=rank).leaf()
        weight = class_vector(here.num_classes).double() if weighted else None
        common = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": smoothing}
        ours = weighted_cross_entropy_loss(here.input, here.target, weight, **common)
        theirs = F.cross_entropy(here.input, here.target, weight, **common)
        close(ours, theirs.detach().numpy())
        close(grad(ours.sum(), here), grad(theirs.sum(), here).numpy())


@over(NEUTRAL)
def test_neutral_settings_in_float32(case: Case) -> None:
    """float32, the dtype of everyday use, agrees to float32 rounding."""
    here = sample(2, dtype=torch.float32).leaf()
    torch.testing.assert_close(case(here), cross_entropy(here, "mean"))
