"""A&D: what noise does, what sampling undoes, the three decoders, the pseudo-labels and the terms, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

pytest.importorskip("monai")

from examples.synapse_ssl.class_weights import DiffDW
from examples.synapse_ssl.config import Config, ModelConfig, load_config
from examples.synapse_ssl.data.batches import Patches
from examples.synapse_ssl.diffusion import kept_signal, noised, sample
from examples.synapse_ssl.diffusion_network import DiffusionVNet, sines
from examples.synapse_ssl.methods import build_method
from examples.synapse_ssl.methods.a_and_d import AAndD, smoothed

PATCH = (4, 32, 32)
COUNTS = torch.tensor([4000, 300, 100])


def config(*overrides: str) -> Config:
    sizes = [f"data.patch={list(PATCH)}", f"data.size={list(PATCH)}", "model.features=[4, 4, 4, 4, 4]"]
    network = ['method="a_and_d"', 'model.network="diff_vnet"', "model.dropout=0.0"]
    return load_config("smoke", [*network, *sizes, 'supervised.pixel="CE"', *overrides])


def built(*overrides: str) -> AAndD:
    torch.manual_seed(0)
    method = build_method(config(*overrides), COUNTS)
    assert isinstance(method, AAndD)
    return method


def toy_batch() -> dict[str, Patches]:
    draws = torch.Generator().manual_seed(0)
    label = torch.randint(3, (2, *PATCH), generator=draws)
    images = [torch.rand((2, 1, *PATCH), generator=draws) for _ in range(2)]
    return {
        "labelled": Patches(images[0], label, ("x", "y")),
        "unlabelled": Patches(images[1], None, ("u", "v")),
    }


def test_noise_takes_the_signals_place():
    kept = kept_signal()
    assert float(kept[0]) == pytest.approx(1 - 1e-4)
    assert float(kept[1]) == pytest.approx((1 - 1e-4) * (1 - 1e-4 - 0.0199 / 999))
    assert float(kept[-1]) < 1e-4  # nothing is left
    clean, noise = torch.ones(2, 3, 4, 4, 4), torch.full((2, 3, 4, 4, 4), 2.0)
    found = noised(clean, torch.tensor([0, 500]), noise)
    for volume, time in zip(found, (0, 500), strict=True):
        share = float(kept[time])
        assert volume.unique().tolist() == pytest.approx([share**0.5 + 2 * (1 - share) ** 0.5])


def test_sampling_finds_what_the_network_knows():
    truth = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1, 1).expand(1, 2, 2, 2, 2)
    seen = []

    def denoise(noisy: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        seen.append((int(time), noisy))
        return 3 * truth  # beyond [-1, 1]: clipped

    start = torch.randn(1, 2, 2, 2, 2)
    assert torch.equal(sample(denoise, start), truth)
    assert [time for time, _ in seen] == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    assert torch.equal(seen[0][1], start)
    # A network that is right all along sees its label with the very noise that it started from.
    kept = kept_signal()
    left = (start - kept[999].sqrt() * truth) / (1 - kept[999]).sqrt()
    for time, noisy in seen[1:]:
        torch.testing.assert_close(
            noisy, noised(truth, torch.tensor([time]), left.float()), atol=1e-5, rtol=0
        )


def test_the_networks_shapes_and_what_each_decoder_sees():
    torch.manual_seed(0)
    net = DiffusionVNet(3, (4, 4, 4, 4, 4), PATCH, 0.0).eval()
    image, noisy = torch.rand(2, 1, *PATCH), torch.randn(2, 3, *PATCH)
    time = torch.tensor([3, 900])
    assert (
        net(image).shape == net.guided(image).shape == net.denoised(noisy, time, image).shape == noisy.shape
    )
    assert not torch.allclose(net(image), net.guided(image))
    late = net.denoised(noisy, torch.tensor([3, 3]), image)
    assert torch.allclose(late[0], net.denoised(noisy, time, image)[0], atol=1e-6)
    assert not torch.allclose(late[1], net.denoised(noisy, time, image)[1], atol=1e-6)
    names = [{name for name, _ in decoder.named_parameters()} for decoder in (net.xi, net.psi, net.theta)]
    assert names[1] == names[2] < names[0]
    assert all("shift" in name for name in names[0] - names[2])
    numbers = [len(stage) for stage in (*net.encoder.stages, *net.theta.stages)]
    assert numbers == [2, 3, 3, 3, 3, 3, 2, 1]
    assert all(block.shift is None for block in (net.encoder.stages[1][-1], net.xi.stages[0][-1]))
    published = DiffusionVNet(14, (2, 2, 2, 2, 2), (64, 128, 128), 0.0)
    assert {down.body[0].stride for down in published.encoder.down} == {(2, 2, 2)}
    wave = sines(torch.tensor([0, 7]))
    assert wave[0].tolist() == [0.0] * 64 + [1.0] * 64
    assert [float(wave[1, 0]), float(wave[1, 127])] == pytest.approx([math.sin(7), math.cos(7e-4)], abs=1e-6)


def test_theta_moves_towards_the_others_before_a_step():
    method = built()
    xi, psi, theta = (
        dict(decoder.named_parameters())
        for decoder in (method.student.xi, method.student.psi, method.student.theta)
    )
    wanted = {name: 0.99 * value + 0.005 * (xi[name] + psi[name]) for name, value in theta.items()}
    method.mix()
    for name, value in theta.items():
        torch.testing.assert_close(value, wanted[name])
    before = {name: value.clone() for name, value in theta.items()}
    method.train().terms(toy_batch(), 0)
    assert any(not torch.equal(value, before[name]) for name, value in theta.items())


def test_the_terms_from_their_parts(monkeypatch):
    method, batch = built().eval(), toy_batch()  # no dropout, no batch statistics
    label, seen = batch["labelled"].label, {}
    net, denoised, guided = method.student, method.student.denoised, method.student.guided
    monkeypatch.setattr(
        net, "denoised", lambda *given: seen.setdefault("xi", []).append(given) or denoised(*given)
    )
    found = method.terms(batch, 4)
    monkeypatch.undo()
    noisy, time, image = seen["xi"][0]
    assert torch.equal(image, batch["labelled"].image)
    assert len(seen["xi"]) == 11  # one for the labelled, ten of sampling
    # What is left of the noisy label when the label is taken out is standard normal.
    clean = 2 * one_hot(label, 3).movedim(-1, 1).float() - 1
    kept = kept_signal()[time].view(2, 1, 1, 1, 1).float()
    noise = (noisy - kept.sqrt() * clean) / (1 - kept).sqrt()
    assert abs(float(noise.mean())) < 0.05
    assert float(noise.std()) == pytest.approx(1, abs=0.05)
    cleaned, second = denoised(noisy, time, image), guided(image)
    hard = DiffDW(3, 50, scaled=False)(cleaned.argmax(1), label)
    wanted = method.supervised(cleaned, label) + method.supervised(second, label, hard)
    torch.testing.assert_close(found.supervised, wanted)
    pseudo = method._pseudo_label(batch["unlabelled"].image, _advanced(method, 4))
    logits = net(batch["unlabelled"].image)
    dice = found.unsupervised - cross_entropy(logits, pseudo)
    assert 0 < dice.item() < 1
    torch.testing.assert_close(found.unsupervised, method.imitate(logits, pseudo))
    again = built().eval().terms(batch, 4)
    assert torch.equal(again.unsupervised, found.unsupervised)


def _advanced(method: AAndD, step: int) -> torch.Generator:
    """The step's generator after the labelled patches' times and noise."""
    draws = method._draws(torch.device("cpu"), step)
    torch.randint(1000, (2,), generator=draws)
    torch.randn((2, 3, *PATCH), generator=draws)
    return draws


def test_pseudo_labels_are_votes_of_both_decoders():
    method, image = built().eval(), toy_batch()["unlabelled"].image
    for decoder in (method.student.xi, method.student.psi):
        torch.nn.init.zeros_(decoder.last.weight)
        decoder.last.bias = torch.nn.Parameter(torch.tensor([0.0, 0.0, 50.0]))
    found = method._pseudo_label(image, method._draws(image.device, 0))
    assert found.shape == (2, *PATCH)
    assert found.unique().tolist() == [2]  # psi is sure: 1 is more than a smoothed softmax has beyond its own
    method.student.psi.last.bias = torch.nn.Parameter(torch.zeros(3))
    share = (
        torch.bincount(method._pseudo_label(image, method._draws(image.device, 0)).flatten()) / found.numel()
    )
    assert share[2] > 0.7  # x is 1 there and 0 elsewhere, with Gumbel noise that the smoothing evens out
    assert 0 < share[0] < 0.15


def test_smoothing_is_a_gaussian_over_three_voxels():
    volume = torch.zeros(1, 2, 5, 5, 5)
    volume[0, 1, 2, 2, 2] = 1
    found = smoothed(volume)
    weight = [math.exp(-0.5), 1.0, math.exp(-0.5)]
    total = sum(weight)
    assert float(found[0, 1].sum()) == pytest.approx(1)
    assert float(found[0, 1, 1, 2, 3]) == pytest.approx(weight[0] * weight[1] * weight[0] / total**3)
    assert float(found[0, 0].abs().max()) == 0
    corner = torch.ones(1, 1, 3, 3, 3)
    assert float(smoothed(corner)[0, 0, 0, 0, 0]) == pytest.approx((1 - weight[0] / total) ** 3)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match='must be "diff_vnet" for a_and_d, got "vnet"'):
        build_method(replace(config(), model=ModelConfig()), COUNTS)
    with pytest.raises(ValueError, match=r'"diff_vnet" is for method = "a_and_d" alone'):
        build_method(replace(config(), method="cps"), COUNTS)
    with pytest.raises(ValueError, match="five numbers for diff_vnet"):
        build_method(config("model.features=[4, 4]"), COUNTS)
    with pytest.raises(ValueError, match="halved 4 times by diff_vnet"):
        DiffusionVNet(3, (4,) * 5, (8, 24, 24), 0.0)
