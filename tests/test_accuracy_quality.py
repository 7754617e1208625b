"""Calibration and boundaries of a test set, by hand on small pictures."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from benchmarks.accuracy.quality import BINS, boundary_f1, calibration_error, quality

IGNORED = 255


class Given(nn.Module):
    """A model that answers with the logits of the images, which hold them."""

    def forward(self, images: Tensor) -> Tensor:
        return images


def measured(logits: Tensor, labels: Tensor, classes: int) -> dict[str, list[list[list[float]]]]:
    data = list(zip(logits, labels, strict=True))
    return quality(Given().train(), data, num_classes=classes, ignore_index=IGNORED, batch_size=2)


def test_a_calibrated_probability_has_no_error() -> None:
    prob = torch.full((3, 1, 10, 10), 0.3)
    labels = (torch.arange(100).view(1, 10, 10) % 10 < 3).long().expand(3, 10, 10)
    found = measured(prob.logit(), labels, 2)
    assert calibration_error(found["reliability"][0]) == pytest.approx(0, abs=1e-6)
    assert found["reliability"][0][math.floor(0.3 * BINS)] == pytest.approx([300, 90, 90])


@pytest.mark.parametrize("classes", [2, 4])
def test_calibration_is_that_of_a_loop(classes: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 1 if classes == 2 else classes, 8, 9)
    labels = torch.randint(classes, (3, 8, 9))
    labels[:, :2] = IGNORED
    found = measured(logits, labels, classes)
    prob = logits.sigmoid() if classes == 2 else logits.softmax(1)
    for c in range(1 if classes == 2 else 0, classes):
        of_class = c - (classes == 2)
        bins = [[0, 0.0, 0] for _ in range(BINS)]
        for p, label in zip(prob[:, of_class].flatten().tolist(), labels.flatten().tolist(), strict=True):
            if label != IGNORED:
                place = bins[min(int(p * BINS), BINS - 1)]
                place[0], place[1], place[2] = place[0] + 1, place[1] + p, place[2] + (label == c)
        error = sum(abs(p - hits) for _, p, hits in bins) / sum(n for n, *_ in bins)
        assert calibration_error(found["reliability"][of_class]) == pytest.approx(error, rel=1e-5)


def square(first: int, last: int) -> Tensor:
    mask = torch.zeros(1, 20, 20, dtype=torch.long)
    mask[:, first:last, first:last] = 1
    return mask


@pytest.mark.parametrize(("moved", "expected"), [(0, 1.0), (2, 1.0), (8, 0.0)])
def test_a_boundary_within_two_pixels_is_found(moved: int, expected: float) -> None:
    """A square of 4×4 that is moved: its 12 pixels of boundary stay near the true ones, or do not."""
    logits = 10.0 * (2 * square(5 + moved, 9 + moved).unsqueeze(1) - 1)
    found = measured(logits, square(5, 9), 2)
    assert found["boundary"][1][::2] == [12, 12]
    assert boundary_f1(found["boundary"][1]) == pytest.approx(expected)


def test_what_is_ignored_has_no_boundary() -> None:
    labels = square(5, 9)
    labels[:, :, 7:] = IGNORED
    found = measured(-10.0 * torch.ones(1, 1, 20, 20), labels, 2)
    assert found["boundary"][1] == [
        0,
        0,
        6,
        0,
    ]  # 4×2 pixels are left of the square: two touch the ignored ones alone
    assert boundary_f1([0, 0, 6, 0]) == 0
    assert math.isnan(boundary_f1([0, 0, 0, 0]))


def test_the_mode_of_the_model_is_restored() -> None:
    model = Given().train()
    quality(model, [(torch.zeros(1, 4, 4), torch.zeros(4, 4).long())], num_classes=2, ignore_index=IGNORED)
    assert model.training
