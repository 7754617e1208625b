"""Vision-language pre-training in miniature: equation 1, the command, a stop and resuming, zero-shot scores."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("kornia")
pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("matplotlib")

from examples.common.logs import Logs, read_log
from examples.common.resumed import check_resumed
from examples.common.scenes.task import load_task
from examples.common.text import build_text
from examples.common.vision import AlignedEfficientNet, build_vision, freeze
from examples.semidavil.config import Config, load_config
from examples.semidavil.pretrain import clip_at_hand, main, pretrain
from examples.semidavil.pretraining.engine import contrastive_loss, matched
from examples.semidavil.pretraining.report import write_report
from examples.semidavil.pretraining.zero_shot import class_captions, zero_shot


def _pretraining(target: Path, *overrides: str) -> Config:
    """Four steps on crops of toy streets."""
    recipe = ['training.optimizer="adamw"', "training.lr=2e-3", 'training.schedule="one_cycle"']
    small = [
        "data.budget=1",
        "data.batch_size=3",
        "data.flip=true",
        "training.iterations=4",
        "training.eval_every=2",
    ]
    return load_config("smoke", [f'data.target="{target}"', *recipe, *small, *overrides])


def test_the_loss_is_equation_1():
    image, text = torch.randn(3, 5), torch.randn(3, 5)
    wanted = 0.0
    for i in range(3):
        scores = [float(nn.functional.cosine_similarity(image[i], t, dim=0)) / 0.1 for t in text]
        wanted -= scores[i] - float(torch.tensor(scores).logsumexp(0))
    assert float(contrastive_loss(image, text, 0.1)) == pytest.approx(wanted, rel=1e-4)


def test_matches_are_counted_by_cosine():
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    image = torch.tensor([[3.0, 1.0], [0.0, 9.0], [1.0, 0.1]])
    assert float(matched(image, text)) == pytest.approx(2 / 3)


def test_the_command_writes_an_encoder_that_training_takes(street_folder, tmp_path, capsys):
    runs = tmp_path / "runs"
    words = ["smoke", "--target", str(street_folder), "--runs", str(runs), "--clip", "no/such-model"]
    words += ["--out", str(runs / "vlp.pt")]
    main([*words, "--set", "data.budget=1", "training.iterations=2"])
    printed = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"zero-shot on val_alt: mIoU11 \d+\.\d", printed[-2])
    vision = build_vision(f"efficientnet-lite0:{runs / 'vlp.pt'}")
    assert isinstance(vision, AlignedEfficientNet)
    maps = vision(torch.rand(1, 3, 32, 64))
    assert [x.shape[1] for x in maps] == list(vision.channels) == [24, 40, 112, 24]
    fresh = AlignedEfficientNet(24)
    pairs = zip(vision.encoder.parameters(), fresh.encoder.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    with pytest.raises(OSError, match="nowhere"):
        build_vision(f"efficientnet-lite0:{tmp_path / 'nowhere.pt'}")


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(street_folder, tmp_path):
    config, kept = _pretraining(street_folder), tmp_path / "kept"
    files = {"whole": tmp_path / "whole.pt", "whole-resumed": tmp_path / "resumed.pt"}

    def run(folder: Path, stop_after: int) -> dict[str, object]:
        return pretrain(config, folder, kept, files[folder.name], stop_after=stop_after, progress=False)

    metrics = run(tmp_path / "whole", 0)
    log = check_resumed(run, tmp_path / "whole", 4)
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    assert all(0 <= row["matched"] <= 1 for row in log)
    whole, resumed = (torch.load(path, weights_only=True) for path in files.values())
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    scores = [read_log(tmp_path / name / "scores_val_alt.csv") for name in files]
    assert [row["step"] for row in scores[0]] == [0, 2, 4]
    assert scores[0] == scores[1]
    assert scores[0][-1]["mIoU11"] == metrics["scores"]["val_alt"]["mean_iou"]["mIoU11"]


def test_training_lowers_the_loss(street_folder, tmp_path):
    config = _pretraining(street_folder, "training.iterations=12", "training.eval_every=0")
    pretrain(config, tmp_path / "run", tmp_path / "kept", tmp_path / "vlp.pt", progress=False)
    losses = [row["loss"] for row in read_log(tmp_path / "run" / "log.csv")]
    assert sum(losses[-4:]) < sum(losses[:4])


def test_the_page_has_the_scores_by_step(tmp_path):
    folder = tmp_path / "run"
    with Logs(folder, 0) as logs:
        for step, iou in ((0, 0.02), (2, 0.04), (4, 0.08)):
            logs.write("scores_val", step, {"mIoU2": iou})
        for step in range(1, 5):
            logs.write("log", step, {"loss": 4.0 - step, "matched": step / 4})
    entry = {"mean_iou": {"mIoU2": 0.08}, "iou": [0.06, 0.1], "pixels": [30, 10]}
    data = {"batch_size": 3, "crop": [8, 9], "streets": 5}
    origin = {"seconds": 90, "device": "abacus", "threads": 1, "commit": "f00"}
    config = {"data": data, "training": {"iterations": 4, "seed": 7}}
    metrics = {"note": "Toys.", "config": config, "classes": ["sky", "sign_symbol"], "scores": {"val": entry}}
    (folder / "metrics.json").write_text(json.dumps(metrics | origin))
    text = write_report(folder, tmp_path / "out")
    assert "| 0 | 2.0 | – | – |\n| 2 | 4.0 | 2.50 | 38 |\n| 4 | 8.0 | 0.50 | 88 |\n" in text
    assert "| sign symbol | sky |\n| --- | --- |\n| 10.0 | 6.0 |\n" in text
    assert "4 steps of 3 images, crops of 8×9 of 5 generated streets; seed 7; 2 minutes" in text
    assert (tmp_path / "out" / "pretraining.md").read_text() == text
    assert len(json.loads((tmp_path / "out" / "pretraining.json").read_text())["log"]) == 4
    assert (tmp_path / "out" / "plots" / "pretraining.png").is_file()


def test_the_zero_shot_class_is_the_nearest_text(street_folder, tmp_path):
    config = load_config("smoke", [f'data.target="{street_folder}"', "data.budget=1"])
    text = freeze(build_text("clip-tiny", 32, pooled=True))
    vision = AlignedEfficientNet(text.channels)
    task = load_task(config.data, tmp_path / "kept")
    texts = class_captions(task.classes, "a street scene")
    assert texts[task.classes.index("sign_symbol")] == "a street scene with sign symbol"
    unit = partial(nn.functional.normalize, dim=0)
    names = [unit(row) for row in text(texts).tokens[:, 0]]
    right = total = 0
    entry = zero_shot(vision, text, task, texts)["val_alt"]
    vision.eval()
    for i in range(2):
        image, label = task.tests["val_alt"].image(i), task.tests["val_alt"].label(i)
        feature = unit(vision(image[None])[-1][0])
        cosine = torch.stack([(feature * name[:, None, None]).sum(0) for name in names])
        found = nn.functional.interpolate(cosine[None], label.shape, mode="bilinear")[0].argmax(0)
        right += int((found == label)[label != 255].sum())
        total += int((label != 255).sum())
    assert entry["pixel_accuracy"] == pytest.approx(right / total)


def test_nothing_is_trained_where_clips_weights_are(tmp_path, capsys):
    assert not clip_at_hand(str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    main(["smoke", "--out", str(tmp_path / "vlp.pt"), "--clip", str(tmp_path)])
    assert "needs no pre-training" in capsys.readouterr().out
    assert not (tmp_path / "vlp.pt").exists()
