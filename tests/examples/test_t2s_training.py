"""T2S-DA: exact resuming, what training does not read, networks, scores, and the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from examples.__main__ import main
from examples.common.config import run_folder
from examples.common.logs import read_log
from examples.common.scenes.task import load_task
from examples.common.streets import CLASSES as STREETS
from examples.common.training import CHECKPOINT
from examples.t2s_da.build import build_student
from examples.t2s_da.config import CONFIGS, Config, load_config
from examples.t2s_da.engine import Engine
from examples.t2s_da.evaluation import evaluate, feature_metrics
from examples.t2s_da.smoke import MODES, smoke, write_styles
from examples.t2s_da.train import train

SMALL = ["data.crop=[16, 24]", "data.streets=3", "training.window=[16, 24]", "reweighting.momentum=0.5"]
COLUMNS = ("loss", "source", "target", "confident", "pull", "feature_distance", "masked", "lr")
STATE = ("student", "teacher", "weights")


def _config(folder: Path, *overrides: str) -> Config:
    """The smoke's configuration on a target, with styles beside it."""
    config = load_config("smoke", [*SMALL, *overrides])
    styles = folder.parent / "styles"
    translation = replace(config.translation, styles=str(styles if styles.is_dir() else write_styles(styles)))
    return replace(config, data=replace(config.data, target=str(folder)), translation=translation)


@pytest.fixture
def config(street_folder) -> Config:
    return _config(street_folder)


RESUMED = {
    **MODES,
    "HRDA and MIC": ("hrda.enabled=true", "mic={enabled=true, block=8}", "data.crop=[24, 32]"),
}


@pytest.mark.parametrize("mode", RESUMED)
def test_a_stopped_run_goes_on_to_the_same_bits(street_folder, tmp_path, mode):
    config = _config(street_folder, *RESUMED[mode], "training.checkpoint_every=4")
    kept = tmp_path / "kept"
    train(config, tmp_path / "whole", kept, progress=False)
    assert train(config, tmp_path / "parts", kept, stop_after=2, progress=False) == {}
    assert len(read_log(tmp_path / "parts" / "log.csv")) == 2
    metrics = train(config, tmp_path / "parts", kept, progress=False)
    whole, parts = (
        torch.load(tmp_path / name / CHECKPOINT, weights_only=True) for name in ("whole", "parts")
    )
    for part in STATE:
        assert whole[part].keys() == parts[part].keys()
        assert [key for key in whole[part] if not torch.equal(whole[part][key], parts[part][key])] == []
    assert whole["weights"]["class_confidence"].any() == (mode != "generalization")
    logs = [read_log(tmp_path / name / "log.csv") for name in ("whole", "parts")]
    rows = [[[row.get(c) for c in COLUMNS] for row in log] for log in logs]
    assert rows[0] == rows[1]
    assert [row["step"] for row in logs[1]] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in read_log(tmp_path / "parts" / "scores_val_alt.csv")] == [3, 6]
    assert metrics["scores"] == json.loads((tmp_path / "whole" / "metrics.json").read_text())["scores"]
    assert sum(metrics["class_weight"]) == pytest.approx(1)
    assert train(config, tmp_path / "parts", Path("nowhere"), progress=False) == metrics  # not repeated


def _weights(config, folder, kept):
    train(config, folder, kept, progress=False)
    return torch.load(folder / CHECKPOINT, weights_only=True)


def _same(one, other):
    return all(torch.equal(one[part][key], other[part][key]) for part in STATE for key in one[part])


def test_no_target_label_is_read_in_training(street_folder, tmp_path):
    """Overwrite them all, and everything stays the same to the last bit; overwrite an image, and it does not."""
    config = _config(street_folder, "training.iterations=2", "training.eval_every=0")
    before = _weights(config, tmp_path / "before", tmp_path / "kept")
    stems = (street_folder / "splits" / "train_alt.txt").read_text().split()
    for stem in stems:
        Image.new("L", (32, 24), 10).save(street_folder / "train" / "labels" / f"{stem}.png")
    assert _same(before, _weights(config, tmp_path / "labels", tmp_path / "kept"))
    for stem in stems:
        Image.new("RGB", (32, 24), (90, 20, 20)).save(street_folder / "train" / "images" / f"{stem}.jpg")
    assert not _same(before, _weights(config, tmp_path / "images", tmp_path / "kept"))


@pytest.mark.parametrize(
    "switches",
    [MODES["generalization"], ("components={self_training=false, pull=false, feature_distance=false}",)],
)
def test_generalisation_and_source_only_see_no_image_of_the_target(street_folder, tmp_path, switches):
    config = _config(street_folder, *switches, "training.iterations=2", "training.eval_every=0")
    assert not config.uses_target
    before = _weights(config, tmp_path / "before", tmp_path / "kept")
    for stem in (street_folder / "splits" / "train_alt.txt").read_text().split():
        Image.new("RGB", (32, 24), (90, 20, 20)).save(street_folder / "train" / "images" / f"{stem}.jpg")
    assert _same(before, _weights(config, tmp_path / "after", tmp_path / "kept"))


def test_unknown_encoders_other_checkpoints_and_infinite_losses_are_refused(config, tmp_path):
    with pytest.raises(ValueError, match=r"model\.vision must be one of efficientnet-lite0"):
        build_student(replace(config, model=replace(config.model, vision="vgg")), 11)
    train(config, tmp_path / "run", tmp_path, stop_after=1, progress=False)
    with pytest.raises(ValueError, match="another configuration"):
        train(
            replace(config, pull=replace(config.pull, weight=0.2)), tmp_path / "run", tmp_path, progress=False
        )
    endless = replace(config, pull=replace(config.pull, weight=float("inf")))
    with pytest.raises(FloatingPointError, match="at step 1: lower training"):
        train(endless, tmp_path / "inf", tmp_path, progress=False)
    plain = replace(config, components=replace(config.components, pull=False))
    with pytest.raises(TypeError, match="no projector"):
        build_student(plain, 11).eval().embed(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("vision", "last"),
    [
        ("segformer-tiny", 32),
        ("resnet-tiny", 32),
        ("dilated-resnet-tiny", 8),
        ("efficientnet-lite0-random", 32),
    ],
)
def test_every_encoder_with_every_decoder_and_projector(config, vision, last):
    for decoder, projector in product(
        ("pyramid", "context", "atrous"), ("encoder", "encoder_last", "decoder")
    ):
        model = replace(config.model, vision=vision, decoder=decoder, projector=projector)
        student = build_student(replace(config, model=model), 11).eval()
        seen = student.see(torch.rand(1, 3, 64, 96))
        finest, coarsest = (16, 24), (64 // last, 96 // last)
        assert seen.maps[0].shape[-2:] == finest
        assert seen.maps[-1].shape[-2:] == coarsest
        decoded = coarsest if decoder == "atrous" else finest
        assert seen.features.shape == (1, 16, *decoded)
        size = {"encoder": finest, "encoder_last": coarsest, "decoder": decoded}[projector]
        assert student.embed_seen(seen).shape == (1, 16, *size)
        assert student.predict(torch.rand(1, 3, 50, 70)).shape == (1, 11, 50, 70)
        assert min(seen.features.min(), student.embed(torch.rand(1, 3, 64, 96)).min()) >= 0


@pytest.mark.parametrize("projector", ["encoder", "encoder_last", "decoder"])
def test_the_projector_sees_its_features_alone(config, projector):
    """A change of the decoder changes what the projector gives only where it takes the decoder's features."""
    student = build_student(replace(config, model=replace(config.model, projector=projector)), 11).eval()
    images = torch.rand(1, 3, 64, 96)
    before = student.embed(images)
    assert torch.equal(before, student.embed_seen(student.see(images)))
    with torch.no_grad():
        for weight in student.decoder.parameters():
            weight.add_(torch.rand_like(weight))
    assert torch.equal(before, student.embed(images)) == (projector != "decoder")


def test_a_dilated_encoder_has_the_weights_of_the_plain_one(config):
    plain, dilated = (
        build_student(replace(config, model=replace(config.model, vision=name)), 11).vision.state_dict()
        for name in ("resnet-tiny", "dilated-resnet-tiny")
    )
    assert all(torch.equal(plain[key], dilated[key]) for key in plain.keys() | dilated.keys())


@pytest.mark.parametrize("decay", ["constant", "polynomial"])
def test_the_rates_warm_up_and_stay_or_fall(config, decay):
    recipe = replace(config.training, warmup=3, iterations=10, lr=1e-3, head_lr=1e-2, decay=decay)
    engine = Engine(replace(config, training=recipe), STREETS, torch.device("cpu"))
    rates = []
    for _ in range(10):
        rates.append(engine.scheduler.get_last_lr())
        engine.optimizer.step()
        engine.scheduler.step()
    shares = [min((t + 1) / 4, 1) * (1 - t / 10 if decay == "polynomial" else 1) for t in range(10)]
    assert rates == [[pytest.approx(1e-3 * s), pytest.approx(1e-2 * s)] for s in shares]
    groups = engine.optimizer.param_groups
    assert sum(len(g["params"]) for g in groups) == len(list(engine.student.parameters()))


def test_mixed_precision_and_the_teachers_scores(config, tmp_path):
    recipe = replace(config.training, amp="bfloat16", evaluate="teacher", iterations=1)
    metrics = train(replace(config, training=recipe), tmp_path / "run", tmp_path / "kept", progress=False)
    assert metrics["scores"]["val_alt"]["ccd"]["mean"] > 0


def test_scores_and_feature_metrics_leave_the_network_as_it_was(config, tmp_path):
    task = load_task(config.data, tmp_path)
    engine = Engine(config, task.classes, torch.device("cpu"))
    before = {key: value.clone() for key, value in engine.student.state_dict().items()}
    entry, features = evaluate(engine, task)["val_alt"], feature_metrics(engine, task)["val_alt"]
    assert engine.student.training
    assert all(torch.equal(value, before[key]) for key, value in engine.student.state_dict().items())
    assert sum(entry["pixels"]) == sum(int((task.tests["val_alt"].label(i) != 255).sum()) for i in range(2))
    shrunk = [task.tests["val_alt"].label(i)[::4, ::4] for i in range(2)]
    present = {int(c) for label in shrunk for c in label.unique()} - {255}
    for name in ("ccd", "pdd"):
        assert {c for c, value in enumerate(features[name]["classes"]) if value is not None} == present


def test_shipped_configurations_are_valid_and_say_what_they_are():
    configs = {path.stem: load_config(path) for path in sorted(CONFIGS.glob("*.toml"))}
    assert {"camvid", "gta5", "smoke"} <= configs.keys()
    assert all(config.note for config in configs.values())
    assert len({json.dumps(config.as_dict()) for config in configs.values()}) == len(configs)
    paper = configs["gta5"]
    assert (paper.pull.weight, paper.pull.temperature, paper.pull.negatives) == (0.1, 0.2, 1024)
    assert (paper.training.iterations, paper.data.crop, paper.data.batch_size) == (40_000, (512, 512), 2)
    assert (paper.translation.size, paper.training.decay, paper.model.decoder) == (
        (512, 1024),
        "constant",
        "context",
    )
    for name in ("gta5", "gta5_resnet", "synthia", "synthia_resnet"):
        assert configs[name].data.rare_class_sampling
        assert configs[name].components.feature_distance


def test_the_command_line(street_folder, tmp_path, capsys):
    overrides = [*SMALL, "training.iterations=1", "training.eval_every=0", "training.feature_metrics=false"]
    places = ["--target", str(street_folder), "--runs", str(tmp_path), "--device", "cpu"]
    main(["t2s_da", "train", "smoke", *places, "--set", *overrides])
    assert "| mIoU11 | sky |" in capsys.readouterr().out
    folder = run_folder(tmp_path, "smoke", load_config("smoke", overrides).as_dict())
    assert "ccd" not in json.loads((folder / "metrics.json").read_text())["scores"]["val_alt"]
    with pytest.raises(SystemExit):
        main(["t2s_da", "train"])


def test_the_smoke_run(capsys):
    logs = smoke()
    assert capsys.readouterr().out.count("stopped after step 3 and resumed: the same losses, scores") == 2
    assert {mode: len(log) for mode, log in logs.items()} == {"adaptation": 6, "generalization": 6}
