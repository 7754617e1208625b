"""Scores of synapse_ssl: overlaps and surface distances against loops over voxels, windows against whole volumes."""

from __future__ import annotations

import json
from itertools import product

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("monai", reason="MONAI's windows and surfaces are used")

from monai.metrics import compute_average_surface_distance, compute_dice

from examples.common.organs import render_organs
from examples.synapse_ssl.config import load_config
from examples.synapse_ssl.data.task import Stored
from examples.synapse_ssl.evaluation import (
    dice_per_class,
    evaluate,
    recall_per_class,
    segment,
    surface_distance_per_class,
)

CLASSES = ("background", "one", "two", "three")
SHAPE = (4, 6, 5)


def _blobs(seed: int, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    """Class indices in lumps of two voxels, all four classes of them."""
    draws = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 4, [(side + 1) // 2 for side in shape], generator=draws)
    fine = coarse.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
    return fine[tuple(slice(side) for side in shape)]


def _surface(mask: torch.Tensor) -> list[tuple[int, ...]]:
    """Voxels of the mask with a neighbour outside it, one of six."""
    inside = {tuple(place) for place in mask.nonzero().tolist()}
    steps = [step for step in product((-1, 0, 1), repeat=3) if sum(map(abs, step)) == 1]
    return [
        place
        for place in sorted(inside)
        if any(tuple(a + b for a, b in zip(place, step, strict=True)) not in inside for step in steps)
    ]


def _distances(one: list[tuple[int, ...]], other: list[tuple[int, ...]]) -> list[float]:
    return [
        min(sum((a - b) ** 2 for a, b in zip(place, there, strict=True)) for there in other) ** 0.5
        for place in one
    ]


@pytest.mark.parametrize("seed", range(6))
def test_surface_distances_equal_loops_over_voxels(seed):
    prediction, label = _blobs(seed), _blobs(seed + 100)
    directed, symmetric = [], []
    for number in (1, 2, 3):
        one, other = _surface(prediction == number), _surface(label == number)
        there, back = _distances(one, other), _distances(other, one)
        directed.append(sum(there) / len(there))
        symmetric.append(sum(there + back) / len(there + back))
    published = surface_distance_per_class(prediction, label, 4, published=True)
    assert published.tolist() == pytest.approx(directed, rel=1e-6)
    assert surface_distance_per_class(prediction, label, 4).tolist() == pytest.approx(symmetric, rel=1e-6)
    assert directed != pytest.approx(symmetric, rel=1e-3)


@pytest.mark.filterwarnings("ignore")  # MONAI's own, of what its mean calls
@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_monais_where_both_sides_have_the_organ(seed):
    prediction, label = _blobs(seed), _blobs(seed + 100)
    pair = [F.one_hot(volume, 4).movedim(-1, 0)[None] for volume in (prediction, label)]
    dice = compute_dice(*pair, include_background=False)[0]
    assert dice_per_class(prediction, label, 4).tolist() == pytest.approx((100 * dice).tolist(), rel=1e-5)
    directed = compute_average_surface_distance(*pair)[0].tolist()
    assert surface_distance_per_class(prediction, label, 4, published=True).tolist() == pytest.approx(
        directed, rel=1e-5
    )
    symmetric = compute_average_surface_distance(*pair, symmetric=True)[0].tolist()
    assert surface_distance_per_class(prediction, label, 4).tolist() == pytest.approx(symmetric, rel=1e-5)


def test_the_interior_of_a_mask_is_no_surface():
    label = torch.zeros(9, 9, 9, dtype=torch.long)
    label[1:8, 1:8, 1:8] = 1
    shell = label.clone()
    shell[2:7, 2:7, 2:7] = 0  # a hollow cube: its inner side is a surface too
    assert surface_distance_per_class(label, shell, 2, published=True).item() == 0
    assert surface_distance_per_class(shell, label, 2, published=True).item() == 0  # walls of one voxel
    shell = label.clone()
    shell[3:6, 3:6, 3:6] = 0
    # 7³ - 5³ = 218 voxels of the outer side, at 0, and 6 · 9 about the hole, one voxel below the outer side.
    assert surface_distance_per_class(shell, label, 2, published=True).item() == pytest.approx(
        54 / (218 + 54)
    )


def test_a_mask_at_the_border_of_the_volume_has_a_surface_there():
    full = torch.ones(5, 5, 5, dtype=torch.long)
    corner = torch.zeros(5, 5, 5, dtype=torch.long)
    corner[0, 0, 0] = 1
    assert surface_distance_per_class(corner, full, 2, published=True).item() == 0
    centre = corner.roll((2, 2, 2), (0, 1, 2))
    assert surface_distance_per_class(centre, full, 2, published=True).item() == 2


def test_the_published_distance_looks_from_the_prediction_alone():
    label = torch.zeros(3, 3, 20, dtype=torch.long)
    label[1, 1] = 1
    prediction = torch.zeros_like(label)
    prediction[1, 1, 0] = 1  # a twentieth of the organ
    assert surface_distance_per_class(prediction, label, 2, published=True).item() == 0
    assert surface_distance_per_class(label, prediction, 2, published=True).item() == pytest.approx(9.5)
    assert surface_distance_per_class(prediction, label, 2).item() == pytest.approx(190 / 21)


@pytest.mark.parametrize("published", [False, True])
def test_an_organ_that_one_side_lacks_costs_128_voxels(published):
    label = torch.zeros(SHAPE, dtype=torch.long)
    prediction = label.clone()
    label[0, 0, 0], prediction[1, 1, 1] = 1, 2
    distances = surface_distance_per_class(prediction, label, 4, published=published)
    assert distances.tolist() == [128, 128, 0]
    dice = dice_per_class(prediction, label, 4, published=published)
    assert dice.tolist() == [0, 0, 1 if published else 100]


@pytest.mark.parametrize("seed", range(4))
def test_dice_equals_a_loop(seed):
    prediction, label = _blobs(seed), _blobs(seed + 50)
    expected = []
    for number in (1, 2, 3):
        one = {tuple(place) for place in (prediction == number).nonzero().tolist()}
        other = {tuple(place) for place in (label == number).nonzero().tolist()}
        expected.append(200 * len(one & other) / (len(one) + len(other)))
    for published in (False, True):
        assert dice_per_class(prediction, label, 4, published=published).tolist() == pytest.approx(expected)
    assert dice_per_class(label.byte(), label, 4).tolist() == [100, 100, 100]


@pytest.mark.parametrize("seed", range(4))
def test_recall_equals_a_loop(seed):
    prediction, label = _blobs(seed), _blobs(seed + 200)
    expected = []
    for number in (1, 2, 3):
        places = (label == number).nonzero().tolist()
        found = sum(prediction[tuple(place)].item() == number for place in places)
        expected.append(100 * found / len(places))
    assert recall_per_class(prediction, label, 4).tolist() == pytest.approx(expected)


def test_recall_does_not_see_voxels_too_many():
    label = torch.zeros(4, 4, 4, dtype=torch.long)
    label[0], label[1, 0] = 1, 2
    wide = label.clone()
    wide[1:3] = 1  # twice too much of 1, which covers all of 2
    assert recall_per_class(wide, label, 4)[:2].tolist() == [100, 0]
    assert recall_per_class(label, wide, 4)[:1].tolist() == pytest.approx([100 / 3])
    assert dice_per_class(wide, label, 4)[0] == dice_per_class(label, wide, 4)[0] == 50
    assert recall_per_class(wide, label, 4)[2].isnan()  # neither side has it
    assert recall_per_class(label, label.clamp(max=1), 4)[1].isnan()  # the prediction alone


@pytest.mark.parametrize("score", [dice_per_class, recall_per_class, surface_distance_per_class])
def test_volumes_that_do_not_match_are_refused(score):
    label = _blobs(0)
    with pytest.raises(ValueError, match=r"of one shape, got \(3, 6, 5\) and \(4, 6, 5\)"):
        score(label[:3], label, 4)
    with pytest.raises(ValueError, match="prediction must hold classes 0 to 3, got 0 to 4"):
        score(label + (label == 3), label, 4)
    with pytest.raises(ValueError, match="label must hold classes 0 to 3, got -1 to 2"):
        score(label, label - 1, 4)


def _shades(image: torch.Tensor) -> torch.Tensor:
    """Logits (N, 4, *) of images whose intensity is class / 4."""
    classes = torch.arange(4.0).view(1, 4, 1, 1, 1)
    return -100 * (4 * image - classes).abs()


@pytest.mark.parametrize("overlap", [0.0, 0.5, (0.75, 0.5, 0.25)])
def test_windows_see_what_the_whole_volume_shows(overlap):
    label = _blobs(3, (9, 14, 11))
    windows = []

    def predict(window: torch.Tensor) -> torch.Tensor:
        windows.append(tuple(window.shape))
        return _shades(window)

    found = segment(predict, label[None] / 4, patch=(4, 8, 8), overlap=overlap)
    assert torch.equal(found, label)
    assert set(windows) == {(1, 1, 4, 8, 8)}


def test_the_published_strides_are_shares_of_the_patch():
    windows = []

    def predict(window: torch.Tensor) -> torch.Tensor:
        windows.append(window)
        return _shades(window)

    # An eighth of 64 x 128 x 128 on 80 x 160 x 160: DHC's strides are 2 x 4 x 4 here, GenericSSL's 0.5 in depth.
    segment(predict, torch.zeros(1, 10, 20, 20), patch=(8, 16, 16), overlap=0.75)
    assert len(windows) == 2 * 2 * 2
    windows.clear()
    generic = load_config("btcv_cps", ["evaluation.overlap=[0.9375, 0.875, 0.875]"]).evaluation.overlap
    segment(predict, torch.zeros(1, 20, 40, 40), patch=(16, 32, 32), overlap=generic)
    assert len(windows) == 5 * 3 * 3
    for value, message in (
        ("1.0", r"in \[0, 1\)"),
        ("[0.5, 1.5, 0]", r"in \[0, 1\)"),
        ("[0.5]", "one or three"),
    ):
        with pytest.raises(ValueError, match=message):
            load_config("btcv_cps", [f"evaluation.overlap={value}"])


def test_probabilities_are_averaged_and_not_logits():
    calls = []

    def predict(window: torch.Tensor) -> torch.Tensor:
        """First sure of class 0 beyond measure, then twice fairly sure of class 1."""
        calls.append(window)
        logits = torch.zeros(1, 2, *window.shape[2:])
        if len(calls) == 1:
            logits[:, 0] = 1000
        else:
            logits[:, 1] = 2
        return logits

    found = segment(predict, torch.zeros(1, 1, 1, 8), patch=(1, 1, 4), overlap=0.75)
    assert len(calls) == 5
    assert found[0, 0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]


def test_volumes_smaller_than_the_patch_are_padded_and_cut_again():
    label = _blobs(5, (3, 10, 5))
    found = segment(_shades, label[None] / 4, patch=(8, 8, 8))
    assert torch.equal(found, label)


def test_evaluation_means_over_cases_then_organs():
    labels = [_blobs(seed) for seed in (1, 2, 3)]
    shown = [labels[0], _blobs(11), torch.zeros_like(labels[2])]  # right, wrong, nothing found
    cases = Stored("abc", lambda i: shown[i][None] / 4, lambda i: labels[i].byte())
    scores = evaluate(_shades, cases, CLASSES, patch=SHAPE, published=True)
    dice = torch.stack([dice_per_class(*pair, 4) for pair in zip(shown, labels, strict=True)])
    distance = torch.stack(
        [surface_distance_per_class(*pair, 4, published=True) for pair in zip(shown, labels, strict=True)]
    )
    assert [case["name"] for case in scores["cases"]] == ["a", "b", "c"]
    assert [case["dsc"] for case in scores["cases"]] == dice.tolist()
    assert dice[0].tolist() == [100] * 3
    assert distance[2].tolist() == [128] * 3
    assert scores["dsc_per_class"] == pytest.approx(dice.mean(0).tolist())
    assert scores["asd_per_class"] == pytest.approx(distance.mean(0).tolist())
    recall = torch.stack([recall_per_class(*pair, 4) for pair in zip(shown, labels, strict=True)])
    assert [case["recall"] for case in scores["cases"]] == recall.tolist()
    assert scores["recall_per_class"] == pytest.approx(recall.mean(0).tolist())
    assert scores["recall"] == pytest.approx(recall.mean().item())
    assert scores["dsc"] == pytest.approx(dice.mean().item())
    assert scores["asd"] == pytest.approx(distance.mean().item())
    assert json.loads(json.dumps(scores)) == scores
    symmetric = evaluate(_shades, cases, CLASSES, patch=SHAPE)
    assert symmetric["asd"] != pytest.approx(scores["asd"])


def test_a_volume_without_an_organ_is_no_part_of_its_recall():
    labels = [_blobs(1), _blobs(2).clamp(max=1), _blobs(3).clamp(max=2)]  # one, two and none without organ 3
    shown = [_blobs(11), _blobs(12), _blobs(13)]
    cases = Stored("abc", lambda i: shown[i][None] / 4, lambda i: labels[i].byte())
    scores = evaluate(_shades, cases, CLASSES, patch=SHAPE)
    recall = [recall_per_class(*pair, 4).tolist() for pair in zip(shown, labels, strict=True)]
    assert [case["recall"][2] for case in scores["cases"]] == [recall[0][2], None, None]
    organs = [sum(r[0] for r in recall) / 3, (recall[0][1] + recall[2][1]) / 2, recall[0][2]]
    assert scores["recall_per_class"] == pytest.approx(organs)
    assert scores["recall"] == pytest.approx(sum(organs) / 3)
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_an_organ_that_no_volume_has_is_no_part_of_the_mean_recall():
    label = _blobs(1).clamp(max=2)
    cases = Stored("a", lambda i: label[None] / 4, lambda i: label.byte())
    scores = evaluate(_shades, cases, CLASSES, patch=SHAPE)
    assert (scores["recall_per_class"], scores["recall"]) == ([100.0, 100.0, None], 100.0)
    assert (scores["dsc_per_class"], scores["dsc"]) == ([100.0] * 3, 100.0)


def test_evaluation_takes_no_gradient_and_needs_a_case():
    weight = torch.ones((), requires_grad=True)
    seen = []

    def predict(window: torch.Tensor) -> torch.Tensor:
        logits = _shades(window) * weight
        seen.append(logits.requires_grad)
        return logits

    label = _blobs(1)
    evaluate(predict, Stored("a", lambda i: label[None] / 4, lambda i: label.byte()), CLASSES, patch=SHAPE)
    assert seen == [False]
    with pytest.raises(ValueError, match="no case"):
        evaluate(predict, Stored((), lambda i: label, lambda i: label), CLASSES, patch=SHAPE)


def test_a_phantom_that_is_shifted_by_a_voxel_is_at_most_a_voxel_away():
    label = F.pad(render_organs(1, (24, 48, 48))[1].long(), (0, 0, 0, 0, 1, 1))
    distances = surface_distance_per_class(label.roll(1, 0), label, 14)
    assert (distances > 0).all()
    assert (distances <= 1).all()
