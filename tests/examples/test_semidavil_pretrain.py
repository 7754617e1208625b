"""Vision-language pre-training in miniature: equation 1, the command, and what training makes of its file."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("kornia")
pytest.importorskip("efficientnet_lite_pytorch")

from examples.common.vision import AlignedEfficientNet, build_vision
from examples.semidavil.pretrain import clip_at_hand, contrastive_loss, main


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
    assert printed[-1].startswith("zero-shot on val_alt: mIoU11 ")
    vision = build_vision(f"efficientnet-lite0:{out}")
    assert isinstance(vision, AlignedEfficientNet)
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
