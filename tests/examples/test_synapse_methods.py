"""Each method's formulas, by hand; what its terms share; and that each of them learns."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

pytest.importorskip("monai")

from classbalance_losses.functional import dyce_loss
from examples.synapse_ssl.class_weights import DiffDW, DistDW
from examples.synapse_ssl.config import Config, ModelConfig, SupervisedConfig, load_config
from examples.synapse_ssl.data.batches import Patches
from examples.synapse_ssl.losses import SupervisedLoss, hard_dice
from examples.synapse_ssl.methods import METHODS, build_method
from examples.synapse_ssl.methods.base import halves, joined
from examples.synapse_ssl.methods.ua_mt import entropy, sure_distance
from examples.synapse_ssl.methods.urpc import rectified_consistency
from examples.synapse_ssl.networks import build_network

PATCH = (4, 32, 32)
COUNTS = torch.tensor([4000, 300, 100])


def toy(method: str, *overrides: str) -> Config:
    """A tiny network on flat patches of three classes; no dropout (A&D's blocks have some in any case)."""
    return load_config(
        "smoke",
        [
            f'method="{method}"',
            f"data.patch={list(PATCH)}",
            f"data.size={list(PATCH)}",
            f'model.network="{"diff_vnet" if method == "a_and_d" else "dyn_unet"}"',
            f"model.features={[4, 8, 8, 8, 8] if method in ('urpc', 'a_and_d') else [4, 8, 8]}",
            "model.dropout=0.0",
            *overrides,
        ],
    )


def toy_batch(seed: int = 0, number: int = 2) -> dict[str, Patches]:
    """Bright bars on a dark ground: a class is an intensity."""
    draws = torch.Generator().manual_seed(seed)
    streams = {}
    for name in ("labelled", "unlabelled"):
        label = torch.zeros(number, *PATCH, dtype=torch.long)
        label[:, :, 3:8] = 1
        label[:, 1:3, 10:13, 2:9] = 2
        image = label[:, None] / 2 + 0.1 * torch.randn((number, 1, *PATCH), generator=draws)
        streams[name] = Patches(image, label if name == "labelled" else None, ("x",) * number)
    return streams


def built(config: Config):
    torch.manual_seed(0)
    return build_method(config, COUNTS).train()


@pytest.mark.parametrize("pixel", ["CE", "DyCE"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns(name, pixel):
    config = toy(name, f'supervised.pixel="{pixel}"', "unsupervised.weight=0.1", "unsupervised.ramp=false")
    method, batch = built(config), toy_batch()
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.02, 0.9)
    losses = []
    for step in range(8):
        value, parts = method.loss(batch, step)
        assert all(part.isfinite().all() for part in parts.values())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        method.after_step(step)
        losses.append(float(parts["supervised"]))
    # Class weights that move with the predictions: the loss is not one function of the network's.
    assert losses[-1] < (losses[0] if name in ("dhc", "a_and_d") else 0.97 * losses[0]), losses
    with torch.no_grad():
        assert method.eval().predict(batch["labelled"].image).shape == (2, 3, *PATCH)


@pytest.mark.parametrize("name", METHODS)
def test_dyce_takes_the_place_of_cross_entropy_in_the_supervised_term_alone(name):
    values = {}
    for pixel in ("CE", "DyCE"):
        _, values[pixel] = built(toy(name, f'supervised.pixel="{pixel}"')).loss(toy_batch(), 0)
    assert not torch.isclose(values["CE"]["supervised"], values["DyCE"]["supervised"])
    assert torch.equal(values["CE"]["unsupervised"], values["DyCE"]["unsupervised"])


@pytest.mark.parametrize("name", METHODS)
def test_without_weight_the_unlabelled_patches_change_nothing(name):
    method = built(toy(name, "unsupervised.weight=0.0"))
    first, second = toy_batch(), toy_batch()
    second["unlabelled"] = Patches(torch.rand_like(second["unlabelled"].image), None, ("y", "y"))
    gradients = []
    for batch in (first, second):
        method = built(toy(name, "unsupervised.weight=0.0"))
        if name == "dhc":  # its class weights are taken from unlabelled predictions: they would differ
            method.distribution.momentum = 1.0
        value, parts = method.loss(batch, 5)
        assert torch.equal(value, parts["supervised"])
        value.backward()
        gradients.append([p.grad for p in method.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_ua_mt_without_weight_is_supervised():
    batch = toy_batch()
    supervised, teacher = built(toy("supervised")), built(toy("ua_mt", "unsupervised.weight=0.0"))
    torch.testing.assert_close(teacher.loss(batch, 0)[0], supervised.loss(batch, 0)[0])


def test_the_supervised_loss_by_hand():
    logits = torch.randn(2, 3, *PATCH)
    label = toy_batch()["labelled"].label
    probability = logits.softmax(1)
    dice = []
    for c in (1, 2):
        overlap = float(probability[:, c][label == c].sum())
        dice.append(1 - 2 * overlap / float(probability[:, c].sum() + (label == c).sum()))
    pixel = float(cross_entropy(logits, label))
    half = SupervisedLoss(SupervisedConfig(), 0.5)
    assert float(half(logits, label)) == pytest.approx(0.5 * (pixel + sum(dice) / 2), rel=1e-4)
    assert float(half(logits.half(), label)) == pytest.approx(float(half(logits, label)), rel=1e-2)
    assert half(logits.half(), label).dtype == torch.float32
    weight = torch.tensor([0.0, 1.0, 3.0])
    weighted = SupervisedLoss(SupervisedConfig(), 1.0)(logits, label, weight)
    wanted = float(cross_entropy(logits, label, weight)) + (dice[0] + 3 * dice[1]) / 2
    assert float(weighted) == pytest.approx(wanted, rel=1e-4)
    alone = SupervisedLoss(SupervisedConfig(dice=False), 0.5)
    assert float(alone(logits, label)) == pytest.approx(pixel, rel=1e-5)
    ohem = SupervisedConfig("DyCE", {"omega": 1.0, "hard_fraction": 1.0}, dice=False)
    assert float(SupervisedLoss(ohem, 0.5)(logits, label)) == pytest.approx(pixel, rel=1e-5)


def test_mining_starts_with_all_voxels():
    logits, label = torch.randn(2, 3, *PATCH), toy_batch()["labelled"].label
    loss = SupervisedLoss(SupervisedConfig("DyCE", {"hard_fraction": 0.2}, dice=False, mining_ramp=0.5), 0.5)
    for progress, fraction in ((0.0, 1.0), (0.25, 0.6), (0.5, 0.2), (0.9, 0.2)):
        loss.set_progress(progress)
        assert float(loss(logits, label)) == float(dyce_loss(logits, label, hard_fraction=fraction))
    method = built(
        toy("supervised", 'supervised.pixel="DyCE"', "supervised.mining_ramp=1.0", "training.epochs=4")
    )
    method.loss(toy_batch(), method.config.training.iterations // 2)
    assert method.supervised.pixel.hard_fraction == pytest.approx(0.6)


def test_the_ramp_and_the_weight():
    method = built(toy("ua_mt", "training.epochs=4", "training.steps_per_epoch=3", "unsupervised.weight=2.0"))
    assert [method.epoch(step) for step in (0, 2, 3, 11)] == [0, 0, 1, 3]
    assert method.weight(0) == method.weight(2) == pytest.approx(2 * math.exp(-5))
    assert method.weight(7) == pytest.approx(2 * math.exp(-5 * 0.5**2))
    assert method.weight(12) == method.weight(100) == 2
    assert built(toy("ua_mt", "unsupervised.weight=2.0", "unsupervised.ramp=false")).weight(0) == 2


@pytest.mark.parametrize("counter", ["epoch", "iteration"])
def test_the_teacher_is_the_students_average(counter):
    method = built(toy("ua_mt", f'ua_mt.ema_counter="{counter}"', "training.steps_per_epoch=2"))
    student, teacher = next(method.student.parameters()), next(method.teacher.parameters())
    wanted = teacher.clone()
    for step in range(5):
        with torch.no_grad():
            student.add_(torch.randn_like(student))
        method.after_step(step)
        n = step // 2 if counter == "epoch" else step
        decay = min(n / (n + 1), 0.99)
        wanted = decay * wanted + (1 - decay) * student.detach()
        assert torch.allclose(teacher, wanted, atol=1e-6)
        if n == 0:
            assert torch.equal(teacher, student)
    assert method.decay(10**6) == 0.99
    assert not any(p.requires_grad for p in method.teacher.parameters())


def test_ua_mts_mask():
    probability = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.9, 0.1]]).T[None]  # (1, 2, 3)
    wanted = [0.0, math.log(2), -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))]
    assert entropy(probability)[0].tolist() == pytest.approx(wanted, abs=1e-4)
    student, teacher = torch.tensor([[[0.7, 0.2], [0.3, 0.8]]]), torch.tensor([[[0.5, 0.9], [0.5, 0.1]]])
    sure = torch.tensor([[True, False]])
    assert float(sure_distance(student, teacher, sure)) == pytest.approx((0.04 + 0.04) / 2)
    assert float(sure_distance(student, teacher, ~sure)) == pytest.approx((0.49 + 0.49) / 2)
    assert float(sure_distance(student, teacher, sure & ~sure)) == 0


def test_ua_mts_threshold_rises_to_its_bound():
    settings = ("training.epochs=10", "training.steps_per_epoch=1")
    published, own = (built(toy("ua_mt", f'ua_mt.entropy="{name}"', *settings)) for name in ("ln 2", "ln C"))
    for method, classes in ((published, 2), (own, 3)):
        assert method.threshold(0) == pytest.approx((0.75 + 0.25 * math.exp(-5)) * math.log(classes))
        assert method.threshold(10) == pytest.approx(math.log(classes))


def test_ua_mts_unsupervised_term_from_its_parts():
    """The mean softmax over the passes decides where, the first pass what; noise has the stated bounds."""
    method, batch = built(toy("ua_mt", "ua_mt.passes=3")), toy_batch()
    with torch.no_grad():
        for value in method.student.parameters():
            value.add_(0.2 * torch.randn_like(value))
    images = batch["unlabelled"].image
    views = method._views(images, 4)
    assert len(views) == 4
    noise = torch.stack(views) - images
    assert 0.199 < float(noise.abs().max()) < 0.2001
    assert float(noise.std()) == pytest.approx(0.095, abs=0.01)
    assert torch.equal(views[2], method._views(images, 4)[2])
    assert not torch.equal(views[2], method._views(images, 5)[2])
    with torch.no_grad():
        softmax = [method.teacher(view).softmax(1) for view in views]
        student = halves(method.student(joined(batch)), batch["labelled"])[1].softmax(1)
    method.threshold = lambda step: math.log(3) * 0.995  # some voxels on either side
    sure = entropy((softmax[1] + softmax[2] + softmax[3]) / 3) < method.threshold(4)
    assert 0 < int(sure.sum()) < sure.numel()
    _, parts = method.loss(batch, 4)
    torch.testing.assert_close(parts["unsupervised"], sure_distance(student, softmax[0], sure))
    torch.testing.assert_close(parts["sure"], sure.float().mean())


def test_urpcs_consistency():
    logits = torch.randn(2, 1, 3, 4, 4).expand(2, 4, 3, 4, 4).clone().requires_grad_()
    value = rectified_consistency(logits)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert float(logits.grad.abs().max()) < 1e-6
    logits = torch.randn(1, 2, 3, 2, dtype=torch.float64)  # one image, two scales, two voxels
    probability = logits.softmax(2)
    mean = probability.mean(1)
    total = 0.0
    for scale in range(2):
        p = probability[0, scale]
        variance = [float((mean[0, :, i] * (mean[0, :, i] / p[:, i]).log()).sum()) for i in range(2)]
        distance = [float(((mean[0, :, i] - p[:, i]) ** 2).mean()) for i in range(2)]
        certain = [math.exp(-v) for v in variance]
        rectified = sum(d * c for d, c in zip(distance, certain, strict=True)) / sum(certain)
        total += (rectified + sum(variance) / 2) / 2
    assert float(rectified_consistency(logits)) == pytest.approx(total, rel=1e-6)
    assert rectified_consistency(torch.full((1, 4, 3, 2), 1e4)).isfinite()
    certain_and_apart = torch.tensor([[[[200.0]], [[-200.0]]], [[[-200.0]], [[200.0]]]]).view(1, 2, 2, 1)
    assert rectified_consistency(certain_and_apart).isfinite()


def test_urpcs_supervised_term_is_the_mean_over_its_outputs():
    method, batch = built(toy("urpc")), toy_batch()
    _, parts = method.loss(batch, 0)
    outputs = method.student(joined(batch))[:2]
    assert outputs.shape == (2, 4, 3, *PATCH)
    values = [method.supervised(outputs[:, s], batch["labelled"].label).item() for s in range(4)]
    assert float(parts["supervised"]) == pytest.approx(sum(values) / 4, rel=1e-5)


def test_cps_is_symmetric():
    method, batch = built(toy("cps")), toy_batch()
    first, second = (net(joined(batch)) for net in (method.first, method.second))
    assert not torch.allclose(first, second)
    one, other = (method.compare(*pair, batch["labelled"]) for pair in ((first, second), (second, first)))
    torch.testing.assert_close(one.supervised, other.supervised)
    torch.testing.assert_close(one.unsupervised, other.unsupervised)
    wanted = cross_entropy(first, second.argmax(1)) + cross_entropy(second, first.argmax(1))
    torch.testing.assert_close(one.unsupervised, wanted)
    torch.testing.assert_close(method.predict(joined(batch)), (first + second) / 2)


def test_depl_with_uniform_frequencies_is_cps_above_a_threshold():
    batch = toy_batch()
    method, cps = built(toy("depl", "depl.threshold=0.0")), built(toy("cps"))
    first, second = (3 * torch.randn(4, 3, *PATCH) for _ in range(2))
    plain = cps.compare(first, second, batch["labelled"])
    torch.testing.assert_close(
        method.compare(first, second, batch["labelled"]).unsupervised, plain.unsupervised
    )
    method = built(toy("depl", "depl.threshold=0.8"))
    value = method.compare(first, second, batch["labelled"])
    wanted, kept = 0.0, 0
    for learner, guide in ((first, second), (second, first)):
        sure = guide.softmax(1).amax(1) >= 0.8
        kept += int(sure.sum())
        wanted += float(cross_entropy(learner, guide.argmax(1), reduction="none")[sure].sum()) / sure.numel()
    assert 0 < kept < 2 * sure.numel()
    assert float(value.unsupervised) == pytest.approx(wanted, rel=1e-5)
    assert float(value.logged["sure"]) == pytest.approx(kept / (2 * sure.numel()))


def test_depl_debiases():
    batch = toy_batch()
    method = built(toy("depl", "depl.threshold=0.0", "depl.momentum=0.75"))
    method.frequency = torch.tensor([[0.8, 0.1, 0.1], [1 / 3, 1 / 3, 1 / 3]])
    logits = torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1, 1).expand(4, 3, *PATCH)
    label, _ = method._believed(logits, method.frequency[0])
    assert label.unique().tolist() == [1]  # 1 - ln 0.8 = 1.22 < 0 - ln 0.1 = 2.30
    method.compare(logits, logits, batch["labelled"])
    seen = logits.softmax(1)[0, :, 0, 0, 0]
    torch.testing.assert_close(method.frequency[0], 0.75 * torch.tensor([0.8, 0.1, 0.1]) + 0.25 * seen)
    torch.testing.assert_close(method.frequency.sum(1), torch.ones(2))


def test_dist_dw_by_hand():
    weights = DistDW(torch.tensor([1000, 100, 10]), momentum=0.9)
    assert weights.weight.tolist() == pytest.approx([0, 3 / 2, 3])  # logs 0, 1, 2 over 2, times 3
    after = weights(torch.tensor([[0] * 8 + [1] * 4 + [2] * 2]))  # logs 0, 1, 2 again, of base 2
    assert after.tolist() == pytest.approx([0, 3 / 2, 3])
    after = weights(torch.tensor([1] * 8 + [0] * 2 + [2] * 4))
    assert after.tolist() == pytest.approx([0.1 * 3, 0.9 * 1.5, 0.9 * 3 + 0.1 * 1.5])
    absent = DistDW(torch.tensor([1000, 100, 0])).weight.tolist()
    assert absent == pytest.approx([0, 3 * math.log(10) / math.log(1e11), 3], rel=1e-4)
    assert DistDW(torch.tensor([5, 5, 5])).weight.tolist() == [1, 1, 1]


def test_diff_dw_by_hand():
    label = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    guesses = [torch.tensor(row) for row in ([0, 0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1, 2, 0])]
    dice = [[8 / 11, 2 / 3, 1e-8 / 2], [6 / 8, 4 / 5, 2 / 3]]
    weights, keep = DiffDW(3, window=4), 3 / 4
    last, learned, unlearned, missed = ([x] * 3 for x in (1e-8, 0.0, 0.0, 1.0))
    for guess, now in zip(guesses, dice, strict=True):
        wanted = []
        for c in range(3):
            change = now[c] - last[c]
            gain = change * math.log(now[c] / last[c])
            learned[c] = keep * learned[c] + (1 - keep) * (gain if change > 0 else 0)
            unlearned[c] = keep * unlearned[c] + (1 - keep) * (gain if change <= 0 else 0)
            missed[c] = keep * missed[c] + (1 - keep) * (1 - now[c])
            wanted.append(((unlearned[c] + 1e-8) / (learned[c] + 1e-8)) ** 0.2 * missed[c])
        last = now
        assert weights(guess, label).tolist() == pytest.approx(
            [3 * w / max(wanted) for w in wanted], rel=1e-3
        )
    assert hard_dice(torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.long), 2).tolist() == [
        1,
        0.5,
    ]


def test_dhcs_terms_use_the_weights_of_their_network():
    method, batch = built(toy("dhc")), toy_batch()
    first, second = (2 * torch.randn(4, 3, *PATCH) for _ in range(2))
    hard, rare = DiffDW(3, 50), DistDW(COUNTS, 0.99)
    label = batch["labelled"].label
    a, b = hard(first[:2].argmax(1), label), rare(second[2:].argmax(1))
    value = method.compare(first, second, batch["labelled"])
    wanted = cross_entropy(first, second.argmax(1), a) + cross_entropy(second, first.argmax(1), b)
    torch.testing.assert_close(value.unsupervised, wanted)
    wanted = method.supervised(first[:2], label, a) + method.supervised(second[:2], label, b)
    torch.testing.assert_close(value.supervised, wanted)
    assert {"difficulty.last", "distribution.weight"} <= method.state_dict().keys()


def test_dhc_survives_patches_of_background_alone():
    method, batch = built(toy("dhc")), toy_batch()
    empty = Patches(batch["labelled"].image, torch.zeros_like(batch["labelled"].label), ("x", "x"))
    logits = torch.zeros(4, 3, *PATCH)
    logits[:, 0] = 5  # DistDW gives the background 0
    terms = method.compare(logits.requires_grad_(), logits, empty)
    assert terms.supervised.isfinite()
    assert terms.unsupervised.isfinite()


def test_losses_are_float32_outside_of_mixed_precision():
    config = toy("ua_mt", 'training.amp="bfloat16"', 'supervised.pixel="DyCE"')
    method, batch = built(config), toy_batch()
    seen = []
    method.supervised.register_forward_pre_hook(
        lambda _, args: seen.append((args[0].dtype, torch.is_autocast_enabled("cpu")))
    )
    method.student.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    value, _ = method.loss(batch, 0)
    assert seen == [torch.bfloat16, (torch.float32, False)]
    assert value.dtype == torch.float32


def test_networks_and_the_patches_they_refuse():
    image = torch.rand(1, 1, 16, 32, 16)
    for config in (ModelConfig(), ModelConfig("basic_unet", (4,) * 6), ModelConfig("dyn_unet", (4, 4, 4))):
        assert build_network(config, 5, (16, 32, 16)).eval()(image).shape == (1, 5, 16, 32, 16)
    for name, features in (("vnet", (1,)), ("basic_unet", (4,) * 6)):
        with pytest.raises(ValueError, match=r"data\.patch must divide by 16 .* got \(8, 64, 64\)"):
            build_network(ModelConfig(name, features), 5, (8, 64, 64))
    with pytest.raises(ValueError, match="six numbers for basic_unet"):
        build_network(ModelConfig("basic_unet", (4, 4)), 5, (16, 16, 16))
    with pytest.raises(ValueError, match="at least 5 numbers for dyn_unet with 4 outputs"):
        build_network(ModelConfig("dyn_unet", (4,) * 4), 5, (16, 16, 16), heads=4)
    with pytest.raises(ValueError, match=r"halved 3 times .* \(10, 12, 12\) has come to \(5, 6, 6\)"):
        build_network(ModelConfig("dyn_unet", (4,) * 4), 5, (10, 12, 12))
    with pytest.raises(ValueError, match='must be "dyn_unet" for 4 outputs, got "vnet"'):
        build_method(replace(toy("urpc"), model=ModelConfig()), COUNTS)


def test_wrong_configurations():
    for override, message in (
        ('method="fixmatch"', "method must be one of 'supervised', 'ua_mt'"),
        ('supervised.pixel="Focal"', "pixel must be one of 'CE', 'DyCE'"),
        ("supervised.mining_ramp=2.0", r"mining_ramp must be in \[0, 1\]"),
        ("model.dropout=1.0", r"dropout must be in \[0, 1\)"),
        ("data.patch=[8, 64]", "patch must be three integers"),
        ("model.features=[]", "features must be a list of integers"),
        ("training.epochs=0", "epochs must be at least 1"),
        ("ua_mt.passes=0", "passes must be at least 1"),
        ("training.iterations=5", "unknown key 'iterations'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_config("smoke", [override])
    with pytest.raises(TypeError, match="gamma"):
        built(toy("cps", "supervised.pixel_options={gamma=2}"))
    with pytest.raises(ValueError, match="omega"):
        built(toy("cps", 'supervised.pixel="DyCE"', "supervised.pixel_options={omega=2.0}"))
    batch = toy_batch()
    batch["labelled"] = replace(batch["labelled"], label=None)
    with pytest.raises(ValueError, match="patches of x, x have no labels"):
        built(toy("cps")).loss(batch, 0)
