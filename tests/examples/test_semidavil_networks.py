"""Student, teacher and what is built of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from examples.common.text import Text, build_text
from examples.common.vision import ImageNetViT, build_vision
from examples.semidavil.config import ComponentConfig, Config, ModelConfig
from examples.semidavil.model.network import build_networks, ema_teacher

TINY = ModelConfig(
    vision="clip-tiny",
    text="clip-tiny",
    vision_without_vlp="vit-tiny",
    guidance_channels=8,
    decoder_channels=8,
    max_tokens=12,
)


@pytest.mark.parametrize(
    ("guidance", "train_vision"), [("paper", False), ("code", False), ("paper", True), ("vlga", False)]
)
def test_student_and_teacher_start_from_different_decoders(guidance, train_vision):
    networks = build_networks(Config(model=replace(TINY, guidance=guidance, train_vision=train_vision)), 5)
    same = build_networks(Config(model=replace(TINY, guidance=guidance, train_vision=train_vision)), 5)
    student = networks.student.state_dict()
    assert all(torch.equal(student[name], value) for name, value in same.student.state_dict().items())
    images = torch.rand(2, 3, 24, 32)
    text = networks.text(["road and sky", "car"])
    if guidance == "vlga":  # a text for each of five classes, for each of two images
        rows = networks.text(list("abcde")).tokens[:, 0].expand(2, -1, -1)
        text = Text(rows, torch.ones(2, 5, dtype=torch.bool))
    logits = networks.student(networks.inputs(images), text, (24, 32))
    assert logits.shape == (2, 5, 24, 32)
    student, teacher = networks.student.state_dict(), networks.teacher.module.state_dict()
    assert student.keys() == teacher.keys()
    for name in student:
        if name.startswith("vision"):
            assert torch.equal(student[name], teacher[name])
        elif name.endswith("weight") and student[name].dim() > 1:
            assert not torch.equal(student[name], teacher[name])
    assert any(name.startswith("vision") for name in student) == train_vision
    logits.sum().backward()
    assert all(p.grad is None for p in networks.text.parameters())
    assert networks.vision is None or all(p.grad is None for p in networks.vision.parameters())


def test_components_that_are_switched_off_are_not_built():
    networks = build_networks(Config(model=TINY, components=ComponentConfig(guidance=False)), 5)
    assert networks.text is None
    assert networks.student.guidance is None
    assert networks.student(networks.inputs(torch.rand(1, 3, 16, 16)), None, (16, 16)).shape == (1, 5, 16, 16)
    without = build_networks(
        Config(
            model=replace(TINY, vision="no such encoder"),
            components=ComponentConfig(pretraining=False, guidance=False),
        ),
        5,
    )
    assert isinstance(without.vision, ImageNetViT)
    assert without.student.vision is None
    with pytest.raises(ValueError, match="vision must be one of"):
        build_vision("resnet")
    with pytest.raises(ValueError, match="text must be one of"):
        build_text("gpt", 8)


@pytest.mark.parametrize("key", ["train_vision", "train_without_vlp"])
def test_without_vlp_imagenet_weights_are_frozen_unless_a_switch_trains_them(key):
    def build(**changes):
        parts = ComponentConfig(pretraining=False, guidance=False)
        return build_networks(Config(model=replace(TINY, **changes), components=parts), 5)

    assert build().vision is not None
    assert isinstance(build(**{key: True}).student.vision, ImageNetViT)
    with_vlp = build_networks(Config(model=replace(TINY, train_without_vlp=True)), 5)
    assert with_vlp.student.vision is None
    assert Config().model.vision_without_vlp == "efficientnet-lite0"  # not its random twin


def test_the_teacher_is_the_average_and_keeps_its_counter_and_buffers():
    def build():
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

    student, initial = build(), build()
    teacher = ema_teacher(student, initial, 0.9)
    wanted = initial[0].weight.detach().clone()
    for _ in range(3):
        student(torch.randn(8, 3))
        with torch.no_grad():
            student[0].weight += 1
        teacher.update_parameters(student)
        wanted = 0.9 * wanted + 0.1 * student[0].weight.detach()
    assert torch.allclose(teacher.module[0].weight, wanted, atol=1e-6)
    assert torch.equal(teacher.module[1].running_mean, student[1].running_mean)
    assert int(teacher.module[1].num_batches_tracked) == 3
    restored = ema_teacher(build(), build(), 0.9)
    restored.load_state_dict(teacher.state_dict())
    assert int(restored.n_averaged) == 4
    assert torch.equal(restored.module[1].running_mean, student[1].running_mean)


def test_a_warmed_up_teacher_forgets_its_start():
    student, initial = nn.Linear(2, 2), nn.Linear(2, 2)
    teacher = ema_teacher(student, initial, 0.75, warmup=True)
    wanted = initial.weight.detach().clone()
    for decay in (1 / 2, 2 / 3, 0.75, 0.75):
        with torch.no_grad():
            student.weight += 1
        teacher.update_parameters(student)
        wanted = decay * wanted + (1 - decay) * student.weight.detach()
    assert torch.allclose(teacher.module.weight, wanted, atol=1e-6)
