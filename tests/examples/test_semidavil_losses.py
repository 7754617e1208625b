"""Equation 4, the losses of Table 6, strong views."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from examples.common.scenes.strong import StrongView
from examples.semidavil.losses import NAMES, ConsistencyLoss, build_loss


@pytest.mark.parametrize("confidence", ["teacher", "student"])
@pytest.mark.parametrize("normalize", ["confident", "images", "pixels"])
def test_consistency_is_equation_4(confidence, normalize):
    student, teacher = (torch.randn(2, 3, 4, 5, dtype=torch.float64) * 3 for _ in range(2))
    loss, share = ConsistencyLoss(0.7, confidence, normalize)(student, teacher)
    total, sure = 0.0, 0
    for n in range(2):
        for y in range(4):
            for x in range(5):
                s, t = student[n, :, y, x].softmax(0), teacher[n, :, y, x].softmax(0)
                if (t if confidence == "teacher" else s).max() >= 0.7:
                    sure += 1
                    total -= float((t * s.log()).sum())
    assert 0 < sure < 40
    count = {"confident": sure, "images": 2, "pixels": 40}[normalize]
    assert float(loss) == pytest.approx(total / count, rel=1e-5)
    assert float(share) == pytest.approx(sure / 40)


def test_consistencys_gradient_is_that_of_the_divergence_and_the_students_alone():
    student, teacher = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 3, 4, requires_grad=True)
    ConsistencyLoss(0.0, normalize="pixels")(student, teacher)[0].backward()
    divergence = (
        nn.functional.kl_div(student.log_softmax(1), teacher.detach().softmax(1), reduction="sum") / 8
    )
    (wanted,) = torch.autograd.grad(divergence, student)
    assert torch.allclose(student.grad, wanted, atol=1e-6)
    assert teacher.grad is None


def test_the_printed_equation_is_the_default():
    student, teacher = torch.randn(2, 3, 4) * 3, torch.randn(2, 3, 4) * 3
    loss, share = ConsistencyLoss(0.7)(student, teacher)
    sure = student.softmax(1).amax(1) >= 0.7
    each = nn.functional.cross_entropy(student, teacher.softmax(1), reduction="none")
    assert 0 < sure.sum() < 8
    assert float(loss) == pytest.approx(float(each[sure].sum()) / 2)
    assert float(share) == pytest.approx(float(sure.float().mean()))


def test_no_confident_pixel_is_zero_with_a_gradient():
    student = torch.zeros(1, 3, 4, requires_grad=True)
    loss, share = ConsistencyLoss(0.9, normalize="confident")(student, torch.zeros(1, 3, 4))
    loss.backward()
    assert loss == share == 0
    assert not student.grad.any()


def test_losses_and_their_refusals():
    logits, labels = torch.randn(2, 5, 6, 7), torch.randint(0, 5, (2, 6, 7))
    labels[0, :2] = 255
    for name in NAMES:
        options = {"weight": "running"} if name == "WCE" else {}
        assert build_loss(name, options, 255)(logits, labels).isfinite()
    cross_entropy = nn.functional.cross_entropy(logits, labels, ignore_index=255)
    assert torch.allclose(build_loss("CE", {}, 255)(logits, labels), cross_entropy)
    assert torch.allclose(build_loss("FL", {"gamma": 0.0}, 255)(logits, labels), cross_entropy)
    weight = [0.5, 2.0, 1.0, 0.0, 3.0]
    fixed = build_loss("WCE", {"weight": weight}, 255)
    wanted = nn.functional.cross_entropy(logits, labels, torch.tensor(weight), ignore_index=255)
    assert torch.allclose(fixed(logits, labels), wanted)
    with pytest.raises(ValueError, match="WCE needs class weights"):
        build_loss("WCE", {}, 255)
    with pytest.raises(ValueError, match="loss must be one of CE, WCE"):
        build_loss("OHEM", {}, 255)
    for options in ({"threshold": 2.0}, {"confidence": "both"}, {"normalize": "batch"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ConsistencyLoss(**options)


def test_strong_views_change_the_image_repeatably():
    images, strong = torch.rand(8, 3, 20, 24), StrongView()
    state = torch.get_rng_state()
    view = strong(images, range(8))
    assert torch.equal(torch.get_rng_state(), state)
    assert view.shape == images.shape
    assert view.min() >= 0
    assert view.max() <= 1
    changed = (view - images).abs().flatten(1).mean(1) > 1e-3
    assert changed.sum() >= 6
    assert torch.equal(view[2:5], StrongView()(images[2:5], [2, 3, 4]))  # its batch does not matter
    assert not torch.equal(view, strong(images, range(1, 9)))


def test_a_strong_view_of_no_strength_keeps_the_colours():
    flat = torch.full((6, 3, 12, 12), 0.3)  # grey: neither blur nor greyscale changes it
    torch.testing.assert_close(StrongView(0.0)(flat, range(6)), flat)
