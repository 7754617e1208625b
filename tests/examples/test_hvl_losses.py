"""HVL's set loss against loops, the losses on dense predictions, and the class that is hidden."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from examples.hvl.config import LossConfig, WeightConfig
from examples.hvl.losses import (
    at_points,
    consistency_loss,
    dense_cross_entropy,
    entropy_share,
    pair_losses,
    set_loss,
)
from examples.hvl.model.prediction import Prediction
from examples.hvl.occlusion import occluded


def _prediction(classes: torch.Tensor, masks: torch.Tensor, text_queries: int) -> Prediction:
    return Prediction([classes], [masks], text_queries, torch.zeros(len(classes), 3, 1, 1))


def test_points_are_read_where_they_lie() -> None:
    maps = torch.arange(6.0).view(1, 1, 2, 3)
    centres = torch.tensor([[[1 / 6, 0.25], [0.5, 0.75], [5 / 6, 0.25]]])
    for mode in ("nearest", "bilinear"):
        torch.testing.assert_close(at_points(maps, centres, mode)[0, 0], torch.tensor([0.0, 4.0, 2.0]))


def test_pair_losses_equal_torchs_and_the_formula_of_dice() -> None:
    logits, target = torch.randn(4, 30) * 3, (torch.rand(2, 30) < 0.4).float()
    valid = (torch.rand(30) < 0.8).float()
    bce, dice = pair_losses(logits, target, valid)
    keep = valid.bool()
    for q in range(4):
        for k in range(2):
            z, y = logits[q, keep], target[k, keep]
            torch.testing.assert_close(bce[q, k], F.binary_cross_entropy_with_logits(z, y))
            p = z.sigmoid()
            expected = 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
            torch.testing.assert_close(dice[q, k], expected)
    extreme, _ = pair_losses(torch.full((1, 30), 1e4), target, valid)
    assert extreme.isfinite().all()


def test_the_set_loss_equals_a_loop_over_every_matching() -> None:
    """Two classes of three in the image; L = 2, and three object queries, tried in every order."""
    weights, options = WeightConfig(), LossConfig()
    classes, masks = torch.randn(1, 9, 4), torch.randn(1, 9, 4, 6)
    labels = torch.tensor([0, 2, 255, 2]).view(1, 1, 4).expand(1, 4, 4).repeat_interleave(3, 2)
    points = torch.rand(1, 64, 2)
    value = set_loss(_prediction(classes, masks, 6), labels, points, weights, options, 255)
    target = at_points(labels[:, None].float(), points, "nearest")[0, 0].long()
    sampled = at_points(masks, points, "bilinear")[0]
    keep = target != 255

    def cost(query: int, c: int) -> torch.Tensor:
        z, y = sampled[query, keep], (target[keep] == c).float()
        p = z.sigmoid()
        dice = 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
        return 5 * F.binary_cross_entropy_with_logits(z, y) + 5 * dice

    def matching(pair: tuple[int, ...]) -> float:
        chances = classes[0].softmax(-1)
        return sum(float(cost(q, c) - 2 * chances[q, c]) for q, c in zip(pair, (0, 2), strict=True))

    first, second = min(permutations((6, 7, 8), 2), key=matching)
    matched = [(0, 0), (1, 0), (4, 2), (5, 2), (first, 0), (second, 2)]  # queries 2 and 3 are class 1's
    wanted = torch.full((9,), 3)
    for query, c in matched:
        wanted[query] = c
    weight = torch.tensor([1.0, 1.0, 1.0, 0.1])
    named = F.cross_entropy(classes[0], wanted, weight)
    torch.testing.assert_close(value, torch.stack([cost(*pair) for pair in matched]).mean() + 2 * named)


def test_the_set_loss_is_the_sum_over_the_decoders_predictions() -> None:
    labels, points = torch.randint(0, 3, (2, 8, 12)), torch.rand(2, 32, 2)
    layers = [(torch.randn(2, 5, 4), torch.randn(2, 5, 4, 6)) for _ in range(2)]
    options = (labels, points, WeightConfig(), LossConfig(), 255)
    both = Prediction(*zip(*layers, strict=True), 3, torch.zeros(2, 3, 1, 1))
    one, two = (set_loss(_prediction(*layer, 3), *options) for layer in layers)
    torch.testing.assert_close(set_loss(both, *options), one + two)


def test_object_queries_alone_are_matched() -> None:
    """Without text queries, which are matched for good, all are as in Mask2Former."""
    labels, points = torch.zeros(1, 8, 12, dtype=torch.long), torch.rand(1, 32, 2)
    masks = torch.full((1, 3, 4, 6), -6.0)
    masks[:, 1] = 6.0  # the one query that covers the image
    classes = torch.zeros(1, 3, 3)
    good, bad = classes.clone(), classes.clone()
    good[0, [1, 0, 2], [0, 2, 2]] = 9.0
    bad[0, [0, 1, 2], [0, 2, 2]] = 9.0
    found = [
        set_loss(_prediction(c, masks, 0), labels, points, WeightConfig(), LossConfig(), 255)
        for c in (good, bad)
    ]
    assert found[0] < 0.1
    assert found[1] > found[0] + 1


def test_images_without_labels_add_nothing() -> None:
    weights, options = WeightConfig(), LossConfig()
    classes, masks = torch.randn(2, 5, 4, requires_grad=True), torch.randn(2, 5, 4, 6, requires_grad=True)
    labels, points = torch.full((2, 8, 12), 255), torch.rand(2, 32, 2)
    nothing = set_loss(_prediction(classes, masks, 3), labels, points, weights, options, 255)
    nothing.backward()
    assert nothing == 0
    assert not classes.grad.any()
    labels[0] = 1
    set_loss(_prediction(classes, masks, 3), labels, points, weights, options, 255).backward()
    assert classes.grad[0].any()
    assert not classes.grad[1].any()
    assert not masks.grad[1].any()


# Dense predictions


def test_dense_cross_entropy_is_the_mean_over_labelled_pixels() -> None:
    logits, labels = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randint(0, 3, (2, 4, 5))
    labels[0, 0] = 255
    found = dense_cross_entropy(logits, labels, 255)
    torch.testing.assert_close(found, F.cross_entropy(logits, labels, ignore_index=255))
    nothing = dense_cross_entropy(logits, torch.full_like(labels, 255), 255)
    assert nothing == 0
    assert nothing.requires_grad


def test_consistency_counts_confident_pixels_over_all() -> None:
    student = torch.randn(2, 3, 4, 5, requires_grad=True)
    label, sure = torch.randint(0, 3, (2, 4, 5)), torch.rand(2, 4, 5) < 0.6
    loss, share = consistency_loss(student, label, sure)
    terms = F.cross_entropy(student, label, reduction="none")[sure]
    torch.testing.assert_close(loss, terms.sum() / 40)
    assert float(share) == pytest.approx(len(terms) / 40)
    loss.backward()
    assert student.grad is not None
    none, nobody = consistency_loss(student, label, torch.zeros_like(sure))
    assert none == nobody == 0
    assert none.requires_grad


def test_entropy_is_a_share_of_the_largest() -> None:
    assert float(entropy_share(torch.zeros(2, 5, 3, 3))) == pytest.approx(1)
    certain = torch.zeros(2, 5, 3, 3)
    certain[:, 1] = 90
    assert float(entropy_share(certain)) == pytest.approx(0, abs=1e-6)
    logits = torch.tensor([0.25, 0.75]).log().view(1, 2, 1, 1)
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / math.log(2)
    assert float(entropy_share(logits)) == pytest.approx(expected)
    padded = torch.cat([logits, torch.zeros_like(logits)], 3)
    assert float(entropy_share(padded, torch.tensor([[[False, True]]]))) == pytest.approx(expected)


# The hidden class


def test_all_pixels_of_one_class_that_the_map_shows_are_hidden() -> None:
    cells = torch.tensor([[[0, 0, 1], [255, 2, 2]], [[255, 255, 255], [255, 255, 255]]])
    labels = cells.repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels[0, 1, 1] = 2  # a pixel of class 2 that its cell does not show
    labels[0, 3, 3] = 5  # a class that no cell shows
    chosen = set()
    for seed in range(20):
        hidden, kept = occluded(labels, (2, 3), [seed, seed], 255)
        assert not hidden[1].any()
        assert (kept[1] == 255).all()
        (own,) = torch.unique(kept[0][kept[0] != 255]).tolist()
        assert torch.equal(hidden[0], labels[0] == own)
        assert torch.equal(kept[0] == own, cells[0] == own)
        chosen.add(own)
        assert all(map(torch.equal, occluded(labels, (2, 3), [seed, seed], 255), (hidden, kept)))
    assert chosen == {0, 1, 2}
