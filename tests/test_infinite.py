"""A logit of -inf, or a weight of 0, gives no NaN: the loss is its limit, or inf, and the gradient is a number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, CORE, Case, Sample, close, grad, over, sample
from torch import Tensor

from classbalance_losses import _dispatch, use_backend
from classbalance_losses.functional import weighted_cross_entropy_loss

FAR = -1e4  # for a probability that is exactly 0 in float64 too


@pytest.fixture(params=["reference", "auto"])
def _backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_dispatch, "_CPU_FROM", 0)
    with use_backend(request.param):
        yield


def labels(s: Sample, others: bool = False) -> Tensor:
    """Mark each pixel's label, or the class after it, in (N, C, *)."""
    index = (torch.where(s.valid, s.target, 0) + others) % s.num_classes
    return torch.zeros_like(s.input, dtype=torch.bool).scatter_(1, index.unsqueeze(1), True)


def masks(s: Sample) -> dict[str, Tensor]:
    """Mark the logits that become -inf, such that each pixel has another."""
    of_class = torch.zeros_like(s.input, dtype=torch.bool)
    of_class[:, 1] = True
    return {
        "a class": of_class,
        "a wrong class": of_class & ~labels(s),
        "the labels": labels(s),
        "all but the labels": ~labels(s),
        "all but a wrong class": ~labels(s, others=True),
        "all but the labels and a wrong class": ~(labels(s) | labels(s, others=True)),
    }


def with_logits(s: Sample, mask: Tensor, value: float) -> Sample:
    return replace(s, input=s.input.masked_fill(mask, value)).leaf()


@over(CASES)
@pytest.mark.usefixtures("_backend")
def test_no_nan(case: Case) -> None:
    s = sample(2, shape=(2, 6, 5), weighted=True, dtype=torch.float32)
    for mask, reduction in product(masks(s).values(), ("mean", "none")):
        leaf = with_logits(s, mask, -torch.inf)
        loss = case(leaf, reduction=reduction)
        assert not loss.isnan().any()
        assert grad(loss.sum(), leaf).isfinite().all()


@over([case for case in CORE if "smoothing" not in case.variant])  # whose loss is infinite in each
@pytest.mark.parametrize(
    "name", ["a wrong class", "all but the labels", "all but the labels and a wrong class"]
)
@pytest.mark.usefixtures("_backend")
def test_the_loss_is_its_limit_where_no_label_is_lost(case: Case, name: str) -> None:
    s = sample(2, shape=(2, 6, 5), weighted=True, dtype=torch.float32)
    lost, far = (with_logits(s, masks(s)[name], value) for value in (-torch.inf, FAR))
    loss, limit = case(lost), case(far)
    close(loss, limit.detach().numpy(), rtol=1e-6, atol=1e-6)
    close(grad(loss, lost), grad(limit, far).numpy(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("smoothing", [0.0, 0.25])
@pytest.mark.parametrize("normalize", ["weights", "pixels"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.usefixtures("_backend")
def test_a_class_of_weight_0_may_be_impossible(smoothing: float, normalize: str, reduction: str) -> None:
    """Its own labels, and its part of what smoothing adds to all pixels, then add 0."""
    s = sample(2, shape=(2, 6, 5), dtype=torch.float32)
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5])
    options = {"normalize": normalize, "label_smoothing": smoothing, "reduction": reduction}
    lost, far = (with_logits(s, masks(s)["a class"], value) for value in (-torch.inf, FAR))
    loss, limit = (weighted_cross_entropy_loss(x.input, s.target, weight, **options) for x in (lost, far))
    assert limit.isfinite().all()
    close(loss, limit.detach().numpy(), rtol=1e-6)
    close(grad(loss.sum(), lost), grad(limit.sum(), far).numpy(), rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("_backend")
def test_with_a_weight_the_loss_is_infinite_as_torchs() -> None:
    s = sample(2, shape=(2, 6, 5), ignored=0.0, dtype=torch.float32)
    for mask, smoothing in product(masks(s).values(), (0.0, 0.25)):
        leaf = with_logits(s, mask, -torch.inf)
        ours = weighted_cross_entropy_loss(leaf.input, s.target, label_smoothing=smoothing)
        theirs = F.cross_entropy(leaf.input, s.target, label_smoothing=smoothing)
        assert ours == theirs if theirs.isinf() else torch.isclose(ours, theirs)


@over(CORE)
@pytest.mark.usefixtures("_backend")
def test_a_pixel_of_weight_0_may_be_impossible(case: Case) -> None:
    s = sample(2, shape=(2, 6, 5), dtype=torch.float32)
    weight = torch.ones(s.target.shape)
    weight[0] = 0
    first = masks(s)["the labels"] & (weight == 0).unsqueeze(1)
    leaf = replace(with_logits(s, first, -torch.inf), pixel_weight=weight)
    loss = case(leaf)
    assert loss.isfinite()
    assert grad(loss, leaf).isfinite().all()
