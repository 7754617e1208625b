"""One logit is two, 0 and z; many labels are as many pixels of one; shares that are one-hot are indices."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, CORE, DEFAULTS, NEUTRAL, Case, close, over
from torch import Tensor

from classbalance_losses import (
    ClassStatistics,
    FocalLoss,
    PixelFrequency,
    WeightedCrossEntropyLoss,
    functional,
)

REDUCTIONS = ("mean", "sum", "none")
LABELS = 3
# What couples the labels of a pixel, or the pixels of all labels, is not a sum over labels.
ALONE = [
    case
    for case in CASES
    if case.loss in ("FocalLoss", "DualFocalLoss", "DualCrossEntropyLoss") and "alpha" not in case.variant
]


def problem(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels of which some are ignored, and weights of pixels."""
    draw = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape, generator=draw, dtype=torch.float64)
    target = (torch.rand(shape, generator=draw) < 0.3).long()
    weight = (torch.rand(shape, generator=draw, dtype=torch.float64) * 4).round() / 2
    return logits, target.masked_fill(torch.rand(shape, generator=draw) < 0.2, 255), weight


def outcome(case: Case, logits: Tensor, target: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    settings = {**case.settings(2), "ignore_index": 255, **options}
    if case.features:
        settings["features"] = torch.randn(
            logits.shape[0],
            2,
            *logits.shape[2:],
            generator=torch.Generator().manual_seed(1),
            dtype=torch.float64,
        )
    value = case.function(leaf, target, **settings)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


def number_for_all(case: Case) -> bool:
    """Whether a number α means the same for all classes, as it does for a softmax alone."""
    return isinstance(case.settings(2).get("alpha"), float) and case.loss == "FocalLoss"


@over([case for case in CASES if not number_for_all(case)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_logit_is_two(case: Case, reduction: str) -> None:
    logits, target, weight = problem(2, 1, 4, 3)
    for q in (None, weight):
        got = outcome(case, logits, target, task="binary", pixel_weight=q, reduction=reduction)
        two = torch.cat([torch.zeros_like(logits), logits], 1)
        own = None if q is None else q[:, 0]
        value, gradient = outcome(case, two, target[:, 0], pixel_weight=own, reduction=reduction)
        close(got[0], value.view(got[0].shape))
        close(got[1], gradient[:, 1:])


@over(NEUTRAL)
@pytest.mark.parametrize("task", ["binary", "multilabel"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_neutral_settings_are_binary_cross_entropy(case: Case, task: str, reduction: str) -> None:
    logits, target, _ = problem(2, 1 if task == "binary" else LABELS, 4, 3)
    target = target.clamp(max=1)
    got = outcome(case, logits, target, task=task, reduction=reduction)
    leaf = logits.clone().requires_grad_()
    theirs = F.binary_cross_entropy_with_logits(leaf, target.double(), reduction=reduction)
    close(got[0], theirs.detach())
    close(got[1], torch.autograd.grad(theirs.sum(), leaf)[0])


@over(ALONE)
def test_many_labels_are_as_many_pixels(case: Case) -> None:
    logits, target, weight = problem(2, LABELS, 4, 3)
    got = outcome(case, logits, target, task="multilabel", pixel_weight=weight)
    apart = (x.reshape(2 * LABELS, 1, 4, 3) for x in (logits, target, weight))
    value, gradient = outcome(case, next(apart), next(apart), task="binary", pixel_weight=next(apart))
    close(got[0], value)
    close(got[1], gradient.view(logits.shape))


@over(CASES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_one_hot_shares_are_indices(case: Case, reduction: str) -> None:
    logits = problem(2, 4, 4, 3)[0]
    target = torch.randint(4, (2, 4, 3), generator=torch.Generator().manual_seed(2))
    hole = torch.rand((2, 4, 3), generator=torch.Generator().manual_seed(3)) < 0.2
    shares = F.one_hot(target, 4).movedim(-1, 1).double()
    shares = torch.where(hole.unsqueeze(1), torch.nan if case.core else 0, shares)
    weight = problem(2, 4, 3)[2].masked_fill(hole, torch.nan)
    settings = case.settings(4)
    for q in (None, weight):
        options = {**settings, "pixel_weight": q, "reduction": reduction}
        if case.features:
            options["features"] = torch.randn(2, 3, 4, 3, dtype=torch.float64)
        found = []
        for labels in (target.masked_fill(hole, -100), shares):
            leaf = logits.clone().requires_grad_()
            value = case.function(leaf, labels, **options)
            found.append((value.detach(), torch.autograd.grad(value.sum(), leaf)[0]))
        for theirs, ours in zip(*found, strict=True):
            close(ours, theirs)


@over(DEFAULTS)
@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_shares_of_0_and_1_are_labels(case: Case, task: str) -> None:
    logits, target, _ = problem(2, 1 if task == "binary" else LABELS, 4, 3)
    shares = target.double().masked_fill(target == 255, torch.nan)
    for theirs, ours in zip(
        outcome(case, logits, target, task=task), outcome(case, logits, shares, task=task), strict=True
    ):
        close(ours, theirs)


@over([case for case in CASES if case.loss == "GBWLoss"])
def test_shares_of_single_pixels(case: Case) -> None:
    logits, target, weight = problem(9, LABELS)
    shares = target.double().masked_fill(target == 255, torch.nan)
    for theirs, ours in zip(
        *(outcome(case, logits, of, task="multilabel", pixel_weight=weight) for of in (target, shares)),
        strict=True,
    ):
        close(ours, theirs)


def test_shares_of_less_than_a_pixel_are_divided_by() -> None:
    """T is (1/4, 1/2); with equal logits ‖p - e_c‖² is 1/2, and each δ² a quarter."""
    logits, shares = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[0.25, 0.5]], dtype=torch.float64)
    expected = {
        "pixel_mean": [0.125, 0.25],
        "class_logits": [0.5, 0.5],
        "bias": [0.5, 0.5],
        "loss": [math.log(2), math.log(2)],
        "official": [0.25 * (0.25 / 1.25**2 + 0.5 / 1.5**2)] * 2,
    }
    for gradient, norms in expected.items():
        close(functional.class_gradient_norms(logits, shares, gradient=gradient), norms)


@over([case for case in CASES if case.loss in ("FocalLoss", "WeightedCrossEntropyLoss", "DualFocalLoss")])
def test_a_mixture_of_labels_is_a_mixture_of_losses(case: Case) -> None:
    logits = problem(2, 4, 4, 3)[0]
    labels = [torch.randint(4, (2, 4, 3), generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
    shares = [F.one_hot(label, 4).movedim(-1, 1).double() for label in labels]
    options = {**case.settings(4), "reduction": "none"}
    each = [case.function(logits, label, **options) for label in labels]
    close(case.function(logits, 0.3 * shares[0] + 0.7 * shares[1], **options), 0.3 * each[0] + 0.7 * each[1])


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16]
)
@over(DEFAULTS)
def test_labels_of_any_integer_type(case: Case, dtype: torch.dtype) -> None:
    logits, target, _ = problem(2, 1, 4, 3)
    target = target.clamp(max=1)
    expected = outcome(case, logits, target, task="binary")
    for labels in (target, target[:, 0]):
        for ours, theirs in zip(
            outcome(case, logits, labels.to(dtype), task="binary"), expected, strict=True
        ):
            close(ours, theirs)


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_torchs_pos_weight(task: str) -> None:
    logits, target, _ = problem(2, 1 if task == "binary" else LABELS, 4, 3)
    target = target.clamp(max=1)
    positive = torch.tensor([3.0, 0.5, 1.0], dtype=torch.float64)[: logits.shape[1]]
    weight = torch.stack([torch.ones_like(positive), positive], -1)
    weight = weight[0] if task == "binary" else weight
    loss = WeightedCrossEntropyLoss(weight, normalize="pixels", task=task)
    theirs = F.binary_cross_entropy_with_logits(logits, target.double(), pos_weight=positive.view(-1, 1, 1))
    close(loss(logits, target), theirs)


def test_focal_is_the_originals() -> None:
    """Lin et al. 2017 and torchvision's sigmoid_focal_loss, by its formula."""
    logits, target, _ = problem(2, LABELS, 4, 3)
    t = target.clamp(max=1).double()
    p = logits.sigmoid()
    own = p * t + (1 - p) * (1 - t)
    bce = F.binary_cross_entropy_with_logits(logits, t, reduction="none")
    theirs = (0.25 * t + 0.75 * (1 - t)) * bce * (1 - own) ** 2
    loss = FocalLoss(alpha=0.25, gamma=2.0, task="multilabel", reduction="none")
    close(loss(logits, t.long()), theirs)
    close(FocalLoss(alpha=torch.tensor(0.25), task="multilabel", reduction="none")(logits, t.long()), theirs)


@over([case for case in CORE if not (case.features or number_for_all(case))])
def test_upsampled(case: Case) -> None:
    logits, target, _ = problem(2, 1, 8, 6)
    low = logits[..., ::2, ::2]
    full = F.interpolate(low, (8, 6), mode="bilinear")
    expected = outcome(case, full, target, task="binary")[0]
    close(outcome(case, low, target, task="binary", upsample="linear")[0], expected)


def test_several_labels_are_ignored() -> None:
    logits, target, _ = problem(2, 4, 5)
    target = torch.arange(10).view(2, 5) % 4
    one = functional.weighted_cross_entropy_loss(logits, target.masked_fill(target == 2, 0), ignore_index=0)
    for labels in (target, target.to(torch.uint8)):
        close(functional.weighted_cross_entropy_loss(logits, labels, ignore_index=(0, 2)), one)
        close(WeightedCrossEntropyLoss(ignore_index=[0, 2])(logits, labels), one)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("images", [2, 1])
def test_weights_of_images(images: int, reduction: str, smoothing: float) -> None:
    logits = problem(images, 4, 5)[0]
    target = (torch.arange(10).view(2, 5) % 4)[:images]
    target[0, 0] = -100
    weight = torch.tensor([[0.5, 1.0, 2.0, 3.0], [1.0, 0.0, 4.0, 0.25]], dtype=torch.float64)[:images]
    options: dict[str, Any] = {"label_smoothing": smoothing}
    got = functional.weighted_cross_entropy_loss(logits, target, weight, reduction=reduction, **options)
    shares = F.one_hot(target.clamp(min=0), 4).movedim(-1, 1).double() * (target >= 0).unsqueeze(1)
    close(functional.weighted_cross_entropy_loss(logits, shares, weight, reduction=reduction, **options), got)
    each = [
        F.cross_entropy(logits[n : n + 1], target[n : n + 1], weight[n], reduction="none", **options)
        for n in range(images)
    ]
    terms = torch.cat(each)
    total = sum(weight[n][target[n][target[n] >= 0]].sum() for n in range(images))
    close(got, {"none": terms, "sum": terms.sum(), "mean": terms.sum() / total}[reduction])


def test_estimators_count_labels_and_signs() -> None:
    logits, target, _ = problem(2, LABELS, 4, 3)
    weights = torch.stack(
        [
            torch.tensor([((target[:, label] == sign).sum()) for sign in (0, 1)], dtype=torch.float64)
            for label in range(LABELS)
        ]
    )
    weights = functional.pixel_frequency_weights(weights.flatten()).view(LABELS, 2)
    options: dict[str, Any] = {"task": "multilabel", "ignore_index": 255}
    expected = WeightedCrossEntropyLoss(weights, **options)(logits, target)
    close(WeightedCrossEntropyLoss(PixelFrequency(), **options)(logits, target), expected)
    running = WeightedCrossEntropyLoss(PixelFrequency(accumulate="running"), **options)
    close(running(logits.requires_grad_(), target), expected)


def test_statistics_count_labels_and_signs() -> None:
    target = problem(2, LABELS, 4, 3)[1]
    counted = ClassStatistics(LABELS, ignore_index=255, task="multilabel")
    counted.update(target)
    counts = torch.stack([(target == sign).sum((0, 2, 3)) for sign in (0, 1)], -1)
    assert torch.equal(counted.pixel_counts, counts.flatten())
    assert counted.weights("pixel_frequency").shape == (LABELS, 2)
    one = ClassStatistics(task="binary", ignore_index=255)
    one.update(target[:, :1])
    one.update(target[:, 0])
    assert torch.equal(one.pixel_counts, 2 * counts[0])
    assert one.num_images == 4
    assert one.weights("pixel_frequency").shape == (2,)
