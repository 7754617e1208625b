"""The parts of domain adaptation with GBW: class weights against plain loops, mixing, two resolutions, distances."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from classbalance_losses import EntropyLoss, GBWLoss
from classbalance_losses.functional import (
    entropy_gradient_norms,
    gbw_class_weights,
    solve_class_weights,
)
from examples.common.mixing import class_masks
from examples.common.scenes.batches import Images
from examples.common.windows import covering_boxes, draw_box
from examples.uda_gbw.config import WeightingConfig, load_config
from examples.uda_gbw.data import Classes
from examples.uda_gbw.methods import build_method
from examples.uda_gbw.methods.entropy import self_information
from examples.uda_gbw.mixing import class_mix
from examples.uda_gbw.networks.discriminators import SOURCE, TARGET, says
from examples.uda_gbw.networks.encoders import build_encoder
from examples.uda_gbw.networks.fusion import TwoResolutions
from examples.uda_gbw.weighting import ClassWeightedEntropy, ClassWeightedLoss, per_pixel

READINGS = ("pixel_mean", "class_logits", "official", "bias", "loss")
COUNTS = torch.tensor([[50, 30, 20], [90, 10, 0], [70, 0, 0], [60, 40, 0]])  # of four images
CLASSES = Classes(("road", "car", "sign_symbol"), COUNTS)


@pytest.fixture
def batch():
    """Logits (2, 3, 4, 5), labels of which some are ignored, confidences."""
    torch.manual_seed(0)
    label = torch.randint(0, 3, (2, 4, 5))
    label[0, 0] = 255
    return torch.randn(2, 3, 4, 5) * 2, label, torch.rand(2, 4, 5)


def _loop(logits, label, weights, confidence, *, gamma=0.0):
    """The mean over labelled pixels of weight · confidence · (focal) cross-entropy, pixel by pixel."""
    total, number = 0.0, 0
    probability = logits.softmax(1)
    for n, row, column in (label != 255).nonzero().tolist():
        y = int(label[n, row, column])
        p = float(probability[n, y, row, column])
        total += float(weights[y]) * float(confidence[n, row, column]) * (1 - p) ** gamma * -math.log(p)
        number += 1
    return total / number


@pytest.mark.parametrize(("pixel_loss", "gamma"), [("ce", 0.0), ("focal", 2.0)])
@pytest.mark.parametrize(
    ("scheme", "weights"),
    [
        ("none", [1.0, 1.0, 1.0]),
        ("image_frequency", [1.0, 4 / 3, 4.0]),  # images: 4, 3, 1 of 4
        ("pixel_frequency", [370 / (3 * 270), 370 / (3 * 80), 370 / (3 * 20)]),
    ],
)
def test_frequency_weights_are_those_of_a_loop(batch, scheme, weights, pixel_loss, gamma):
    logits, label, confidence = batch
    loss = ClassWeightedLoss(WeightingConfig(scheme=scheme, pixel_loss=pixel_loss), CLASSES)
    assert loss.class_weight.tolist() == pytest.approx(weights)
    assert float(loss(logits, label, confidence)) == pytest.approx(
        _loop(logits, label, weights, confidence, gamma=gamma)
    )


def test_a_tempered_pixel_frequency():
    loss = ClassWeightedLoss(WeightingConfig(scheme="pixel_frequency", power=0.5), CLASSES)
    assert loss.class_weight.tolist() == pytest.approx([math.sqrt(370 / (3 * n)) for n in (270, 80, 20)])


def test_the_programme_on_losses_is_that_of_a_loop(batch):
    """λ = 1 and three classes whose losses are near to each other: v_c = 1 + (m_c − mean m) / 2."""
    logits, label, _ = batch
    logits = logits / 2
    loss = ClassWeightedLoss(WeightingConfig(scheme="loss"), CLASSES)
    value = loss(logits, label)
    means = []
    for c in range(3):
        own = [-math.log(p) for p in logits.softmax(1)[:, c][label == c].tolist()]
        means.append(sum(own) / len(own))
    weights = [1 + (m - sum(means) / 3) / 2 for m in means]
    assert min(weights) > 0
    assert loss.class_weight.tolist() == pytest.approx(weights)
    assert float(value) == pytest.approx(_loop(logits, label, weights, torch.ones(label.shape)))


@pytest.mark.parametrize("pixel_loss", ["ce", "focal"])
def test_the_curriculum_takes_the_easiest_classes_first(batch, pixel_loss):
    logits, label, confidence = batch
    rule = WeightingConfig(
        scheme="curriculum",
        pixel_loss=pixel_loss,
        curriculum_start=34,
        curriculum_increment=34,
        curriculum_every=2,
    )
    loss = ClassWeightedLoss(rule, CLASSES)
    means = [-logits.log_softmax(1)[:, c][label == c].mean() for c in range(3)]
    order = sorted(range(3), key=lambda c: means[c])
    for active in (1, 1, 2, 2, 3):
        value = loss(logits, label, confidence)
        chosen = order[:active]
        assert loss.class_weight.tolist() == [float(c in chosen) for c in range(3)]
        kept = torch.where(torch.isin(label, torch.tensor(chosen)), label, 255)
        gamma = 2.0 if pixel_loss == "focal" else 0.0
        assert float(value) == pytest.approx(_loop(logits, kept, [1.0] * 3, confidence, gamma=gamma))


@pytest.mark.parametrize("gradient", READINGS)
@pytest.mark.parametrize("regularization", [1.0, 0.05])
def test_gbw_is_the_librarys(batch, gradient, regularization):
    logits, label, confidence = batch
    rule = WeightingConfig(scheme="gbw", gradient=gradient, regularization=regularization)
    ours = ClassWeightedLoss(rule, CLASSES)
    theirs = GBWLoss(regularization=regularization, gradient=gradient, ignore_index=255)
    one, other = (x.clone().requires_grad_() for x in (logits, logits))
    value, wanted = ours(one, label, confidence), theirs(other, label, pixel_weight=confidence)
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(ours.class_weight, theirs.class_weight)
    assert not torch.allclose(ours.class_weight, torch.ones(3), atol=1e-4)
    value.backward()
    wanted.backward()
    torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize(("pixel_loss", "gamma"), [("ce", 0.0), ("focal", 2.0)])
@pytest.mark.parametrize("scheme", ["none", "pixel_frequency", "gbw", "loss", "curriculum"])
def test_equation_2_is_the_sum_of_class_means(batch, scheme, pixel_loss, gamma):
    """Each class's mean is that of a loss that knows no other labels."""
    logits, label, confidence = batch
    label = torch.where(label == 2, 1, label)  # a class without pixels adds nothing
    loss = ClassWeightedLoss(WeightingConfig(scheme=scheme, pixel_loss=pixel_loss, apply="class"), CLASSES)
    value = float(loss(logits, label, confidence))
    means = [
        _loop(logits, torch.where(label == c, c, 255), [1.0] * 3, confidence, gamma=gamma) for c in range(2)
    ]
    weights = loss.class_weight.tolist()
    assert value == pytest.approx(weights[0] * means[0] + weights[1] * means[1])
    if (scheme, pixel_loss) == ("gbw", "ce"):
        wanted = GBWLoss(apply="class", ignore_index=255)(logits, label, pixel_weight=confidence)
        assert value == pytest.approx(float(wanted))


def test_confidence_stays_out_of_the_gradient_where_told(batch):
    logits, label, confidence = batch
    ours = ClassWeightedLoss(WeightingConfig(scheme="gbw", confidence=False), CLASSES)
    value = ours(logits, label, confidence)
    theirs = GBWLoss(ignore_index=255)
    theirs(logits, label)
    torch.testing.assert_close(ours.class_weight, theirs.class_weight)
    assert float(value) == pytest.approx(_loop(logits, label, theirs.class_weight, confidence))


def test_a_later_batch_leaves_an_earlier_loss_alone(batch):
    """The weights of a loss that has not gone backward yet are not overwritten."""
    logits, label, _ = batch
    loss = ClassWeightedLoss(WeightingConfig(scheme="gbw"), CLASSES)
    one, other = (logits.clone().requires_grad_() for _ in range(2))
    first = loss(one, label)
    loss(-logits, label)
    first.backward()
    loss(other, label).backward()
    torch.testing.assert_close(one.grad, other.grad)


def test_each_pixels_weight():
    label = torch.tensor([[[0, 2, 255]]])
    assert per_pixel(torch.tensor([1.0, 2.0, 3.0]), label).tolist() == [[[1.0, 3.0, 0.0]]]


def test_class_masks_have_half_of_the_classes():
    label = torch.tensor([[0, 0, 1, 255], [2, 3, 4, 255]])
    seen = set()
    for seed in range(40):
        mask = class_masks(label[None], [seed])[0]
        chosen = label[mask].unique().tolist()
        assert len(chosen) == 3
        assert 255 not in chosen
        assert not torch.isin(label[~mask], torch.tensor(chosen)).any()  # a class goes as a whole
        seen.add(tuple(chosen))
        assert torch.equal(mask, class_masks(label[None], [seed])[0])
    assert len(seen) == 10  # 3 of 5
    assert not class_masks(torch.full((1, 2, 2), 255), [0]).any()


def test_mixtures_are_source_where_masked_and_target_elsewhere():
    torch.manual_seed(0)
    mask = torch.rand(2, 3, 4) < 0.5
    image, under = torch.rand(2, 3, 3, 4), torch.rand(2, 3, 3, 4)
    label, pseudo = torch.zeros(2, 3, 4, dtype=torch.long), torch.ones(2, 3, 4, dtype=torch.long)
    mixed = class_mix(mask, image, label, under, pseudo, torch.full((2, 3, 4), 0.25))
    for n, row, column in torch.cartesian_prod(*map(torch.arange, mask.shape)).tolist():
        own = bool(mask[n, row, column])
        assert torch.equal(mixed.image[n, :, row, column], (image if own else under)[n, :, row, column])
        assert int(mixed.label[n, row, column]) == (0 if own else 1)
        assert float(mixed.confidence[n, row, column]) == (1.0 if own else 0.25)


def _entropy(*overrides):
    shared = ['method="entropy"', "entropy.regularization=0.0"]
    return ClassWeightedEntropy(load_config("smoke", [*shared, *overrides]), CLASSES)


def test_entropy_lies_between_certainty_and_ignorance():
    logits = torch.tensor([[0.0, 0.0, 0.0], [50.0, 0.0, 0.0]]).T[None, :, None]
    torch.testing.assert_close(self_information(logits).sum(1), torch.tensor([[[1.0, 0.0]]]))
    for overrides in ([], ['entropy.weighting="labels"']):
        loss = _entropy('weighting.scheme="none"', *overrides)
        assert float(loss(logits)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("overrides", "gradient", "regularization"),
    [
        ([], "pixel_mean", 1.0),
        (["weighting.regularization=0.1"], "pixel_mean", 0.1),
        (["weighting.regularization=0.1", "entropy.regularization=0.02"], "pixel_mean", 0.02),
        (['weighting.gradient="bias"', "entropy.regularization=0.005"], "bias", 0.005),
        (['weighting.scheme="loss"'], "loss", 1.0),
    ],
)
def test_each_classs_entropy_has_the_weight_of_its_own_gradient(batch, overrides, gradient, regularization):
    logits = batch[0]
    loss = _entropy(*overrides)
    one, other = (x.clone().requires_grad_() for x in (logits, logits))
    value = loss(one)
    weight = solve_class_weights(
        entropy_gradient_norms(logits, gradient=gradient), regularization=regularization
    )
    torch.testing.assert_close(loss.class_weight, weight)
    assert not torch.allclose(weight, torch.ones(3), atol=1e-4)
    wanted = (weight.view(-1, 1, 1) * self_information(other)).sum(1).mean()
    torch.testing.assert_close(value, wanted)
    value.backward()
    wanted.backward()
    torch.testing.assert_close(one.grad, other.grad)
    theirs = EntropyLoss("gbw", gradient=gradient, regularization=regularization)(logits)
    torch.testing.assert_close(value.detach(), theirs / math.log(3))


def test_the_rival_reading_weighs_pixels_by_their_most_probable_class(batch):
    logits = batch[0]
    loss = _entropy('entropy.weighting="labels"', "entropy.regularization=0.02")
    value, total = float(loss(logits)), 0.0
    seen, information = logits.argmax(1), self_information(logits).sum(1)
    weight = gbw_class_weights(logits, seen)  # λ is that of labels
    torch.testing.assert_close(loss.class_weight, weight)
    for place in (tuple(at) for at in torch.ones_like(seen).nonzero().tolist()):
        total += float(weight[seen[place]] * information[place])
    assert value == pytest.approx(total / seen.numel())


def test_a_frequency_weighs_the_terms_too(batch):
    loss = _entropy('weighting.scheme="image_frequency"')
    weight = torch.tensor([1.0, 4 / 3, 4.0])
    wanted = (weight.view(-1, 1, 1) * self_information(batch[0])).sum(1).mean()
    torch.testing.assert_close(loss(batch[0]), wanted)


def test_boxes_cover_the_image_and_fit_into_it():
    covered = torch.zeros(48, 80)
    for box in covering_boxes(48, 80):
        assert (box.height, box.width) == (24, 40)
        assert covered[box.place].shape == (24, 40)
        covered[box.place] += 1
    assert covered.min() >= 1
    drawn = {draw_box(48, 80, torch.Generator().manual_seed(seed)) for seed in range(200)}
    assert {box.top for box in drawn} == {0, 8, 16, 24}
    assert {box.left for box in drawn} == {0, 8, 16, 24, 32, 40}


class Echo(nn.Module):
    """An encoder that gives the image itself."""

    def forward(self, x):
        return [x]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_two_resolutions_are_fused_by_attention(share):
    """Without attention the context's logits everywhere; with all of it the detail's inside the window."""
    attention = nn.Conv2d(3, 3, 1)
    nn.init.zeros_(attention.weight)
    nn.init.constant_(attention.bias, 1e4 if share else -1e4)

    def first(module):
        return nn.Sequential(Take(), module)

    net = TwoResolutions(Echo(), Take(), first(attention))
    image = torch.rand(1, 3, 32, 48)
    normal = (image - net.mean) / net.std
    half = nn.functional.interpolate(image, scale_factor=0.5, mode="bilinear")
    blurred = nn.functional.interpolate((half - net.mean) / net.std, scale_factor=2, mode="bilinear")
    box = draw_box(32, 48, torch.Generator().manual_seed(1))
    seen = net.see(image, box)
    torch.testing.assert_close(seen.detail, normal[box.place])
    wanted = blurred.clone()
    if share:
        wanted[box.place] = normal[box.place]
    torch.testing.assert_close(seen.logits, wanted)
    torch.testing.assert_close(net(image), normal if share else blurred, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="needs the window"):
        net.see(image)


class Take(nn.Module):
    """The first of several maps."""

    def forward(self, maps):
        return maps[0]


def test_pretrained_mit_is_read_from_a_folder(tmp_path):
    encoder = build_encoder("mit-tiny").eval()
    encoder.model.save_pretrained(tmp_path)
    again = build_encoder(f"mit:{tmp_path}").eval()
    image = torch.rand(1, 3, 64, 96)
    maps = encoder(image)
    assert [tuple(x.shape) for x in maps] == [(1, 8, 16, 24), (1, 16, 8, 12), (1, 24, 4, 6), (1, 32, 2, 3)]
    assert all(torch.equal(a, b) for a, b in zip(maps, again(image), strict=True))
    with pytest.raises(ValueError, match=r"model\.encoder must be one of efficientnet-lite0, mit-tiny"):
        build_encoder("resnet")


def _images(number, *, labelled):
    torch.manual_seed(number)
    label = torch.randint(0, 3, (2, 32, 48)) if labelled else None
    return Images(torch.rand(2, 3, 32, 48), label, ("a", "b"), (0, 1))


def test_a_discriminator_learns_from_its_own_loss_alone():
    """Fooling it moves the network, not the discriminator."""
    torch.manual_seed(0)
    method = build_method(
        load_config("smoke", ['method="adaptsegnet"', "model.dropout=0.0"]), CLASSES
    ).train()
    source, target = _images(1, labelled=True), _images(2, labelled=False)
    method.step(source, target, 0)
    judge = method.discriminators["source"]
    got = [p.grad.clone() for p in judge.parameters()]
    outputs = [method.student.see(images.image).logits.detach().softmax(1) for images in (source, target)]
    loss = sum(says(judge, p, d) for p, d in zip(outputs, (SOURCE, TARGET), strict=True)) / 2
    for gradient, wanted in zip(got, torch.autograd.grad(loss, list(judge.parameters())), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("weighting", ["terms", "labels"])
def test_advents_discriminator_sees_weighted_maps_of_both_domains(weighting):
    torch.manual_seed(0)
    overrides = ["model.dropout=0.0", "entropy.regularization=0.001", f'entropy.weighting="{weighting}"']
    method = build_method(load_config("smoke", ['method="advent"', *overrides]), CLASSES).train()
    source, target = _images(1, labelled=True), _images(2, labelled=False)
    seen = []
    judge = method.discriminators["output"]
    judge.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    method.step(source, target, 0)
    known, new = (method.student.see(images.image).logits.detach() for images in (source, target))
    weight = torch.ones(3)
    if weighting == "terms":
        weight = solve_class_weights(entropy_gradient_norms(new), regularization=0.001)
        assert float((weight - 1).abs().max()) > 0.05
        torch.testing.assert_close(method.losses["entropy"].class_weight, weight, rtol=1e-4, atol=1e-4)
    else:
        assert "entropy" not in method.losses
    for maps, logits in zip(seen, (new, known, new), strict=True):
        wanted = weight.view(-1, 1, 1) * self_information(logits)
        torch.testing.assert_close(maps, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["source_only", "entropy", "advent", "adaptsegnet", "dacs", "daformer"])
def test_with_gbw_a_run_starts_from_the_same_weights_and_random_numbers(method):
    found = []
    for scheme in ("none", "gbw"):
        torch.manual_seed(0)
        overrides = [f'method="{method}"', f'weighting.scheme="{scheme}"', 'feature_distance.classes=["car"]']
        built = build_method(load_config("smoke", overrides), CLASSES)
        found.append((built.state_dict(), torch.get_rng_state()))
    (one, drawn), (other, drawn_too) = found
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(drawn, drawn_too)


def test_pseudo_labels_are_the_teachers_and_as_sure_as_it_is():
    torch.manual_seed(0)
    overrides = ['method="dacs"', "self_training.ignore_top=3", "self_training.ignore_bottom=2"]
    method = build_method(load_config("smoke", overrides), CLASSES).train()
    image = _images(3, labelled=False).image
    probability = method.teacher(image).softmax(1)
    theta = float(probability.amax(1).median())
    method.config = load_config("smoke", [*overrides, f"self_training.threshold={theta}"])
    label, confidence = method.pseudo_labels(image)
    assert torch.equal(label, probability.argmax(1))
    share = float((probability.amax(1) >= theta).float().mean())
    assert 0.4 < share < 0.6
    assert confidence[:, 3:-2].unique().tolist() == pytest.approx([share])
    assert not confidence[:, :3].any()
    assert not confidence[:, -2:].any()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["hrda.enabled=true"], "hrda needs a teacher: expected method dacs or daformer, got 'source_only'"),
        (['method="advent"', "mic.enabled=true"], "mic needs a teacher"),
        (['method="dacs"', "hrda.enabled=true", "data.crop=[24, 48]"], "sides that are multiples of 16"),
        (['training.evaluate="teacher"'], "has no teacher"),
        (['method="unknown"'], "must be one of 'source_only', 'entropy'"),
        (["weighting.regularization=0.0"], "regularization must be positive"),
        (['weighting.gradient="other"'], "must be one of 'pixel_mean', 'class_logits'"),
        (
            ['method="entropy"', 'weighting.gradient="official"'],
            "released code has no gradient of an entropy",
        ),
        (["entropy.regularization=-1.0"], "regularization must be at least 0"),
        (["self_training.ignore_top=40"], "leave nothing of 32 rows"),
        (["self_training.threshold=1.5"], r"must be in \[0, 1\]"),
        (["mic.ratio=2.0"], r"ratio must be in \[0, 1\]"),
        (["data.batch_size=0"], "batch_size must be at least 1"),
        (["data.budget=3"], "unknown key 'budget'"),
    ],
)
def test_bad_configurations_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_config("smoke", overrides)
