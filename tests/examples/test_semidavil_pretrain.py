"""Vision-language pre-training in miniature: equation 1, the command, and what training makes of its file."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("kornia")
pytest.importorskip("efficientnet_lite_pytorch")

from examples.common.scenes.task import load_task
from examples.common.text import build_text
from examples.common.vision import AlignedEfficientNet, build_vision, freeze
from examples.semidavil.config import load_config
from examples.semidavil.model.captions import class_texts
from examples.semidavil.pretrain import clip_at_hand, contrastive_loss, main, zero_shot


def test_the_loss_is_equation_1():
    image, text = torch.randn(3, 5), torch.randn(3, 5)
    wanted = 0.0
    for i in range(3):
        scores = [float(nn.functional.cosine_similarity(image[i], t, dim=0)) / 0.1 for t in text]
        wanted -= scores[i] - float(torch.tensor(scores).logsumexp(0))
    assert float(contrastive_loss(image, text, 0.1)) == pytest.approx(wanted, rel=1e-4)


def test_the_command_writes_an_encoder_that_training_takes(street_folder, tmp_path, capsys):
    out = tmp_path / "vlp.pt"
    words = ["smoke", "--target", str(street_folder), "--runs", str(tmp_path / "runs"), "--out", str(out)]
    words += ["--steps", "8", "--batch-size", "4", "--lr", "2e-3", "--clip", "no/such-model"]
    main([*words, "--set", "data.budget=1"])
    printed = capsys.readouterr().out.splitlines()
    losses = [float(line.split()[2]) for line in printed if line.startswith("step")]
    assert len(losses) == 8
    assert min(losses[-3:]) < losses[0]  # it learns
    vision = build_vision(f"efficientnet-lite0:{out}")
    assert isinstance(vision, AlignedEfficientNet)
    config = load_config("smoke", [f'data.target="{street_folder}"', "data.budget=1"])
    text = freeze(build_text("clip-tiny", 32, pooled=True))
    task = load_task(config.data, tmp_path / "runs" / "kept")
    names = nn.functional.normalize(text(class_texts(task.classes)).tokens[:, 0], dim=1)
    right = total = 0
    entry = zero_shot(freeze(vision), text, task)["val_alt"]
    for i in range(2):
        image, label = task.tests["val_alt"].image(i), task.tests["val_alt"].label(i)
        cosine = torch.einsum(
            "chw,kc->khw", nn.functional.normalize(vision(image[None])[-1][0], dim=0), names
        )
        found = nn.functional.interpolate(cosine[None], label.shape, mode="bilinear")[0].argmax(0)
        right += int((found == label)[label != 255].sum())
        total += int((label != 255).sum())
    assert entry["pixel_accuracy"] == pytest.approx(right / total)
    assert re.fullmatch(r"zero-shot on val_alt: mIoU11 \d+\.\d", printed[-1])
    maps = vision(torch.rand(1, 3, 32, 64))
    assert [x.shape[1] for x in maps] == list(vision.channels) == [24, 40, 112, 24]
    fresh = AlignedEfficientNet(24)
    pairs = zip(vision.encoder.parameters(), fresh.encoder.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    with pytest.raises(OSError, match="nowhere"):
        build_vision(f"efficientnet-lite0:{tmp_path / 'nowhere.pt'}")


def test_nothing_is_trained_where_clips_weights_are(tmp_path, capsys):
    assert not clip_at_hand(str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    main(["smoke", "--out", str(tmp_path / "vlp.pt"), "--clip", str(tmp_path)])
    assert "needs no pre-training" in capsys.readouterr().out
    assert not (tmp_path / "vlp.pt").exists()
