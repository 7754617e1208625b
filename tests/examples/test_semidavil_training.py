"""Losses, the step, exact resuming, evaluation, and the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from semidavil_files import write_cityscapes, write_gta5
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from examples.common import provenance
from examples.common.config import run_folder
from examples.common.logs import Logs, read_log
from examples.common.streets import CLASSES as STREET_CLASSES
from examples.common.training import CHECKPOINT
from examples.semidavil import grid
from examples.semidavil.config import CONFIGS, ComponentConfig, Config, load_config
from examples.semidavil.data.batches import Steps
from examples.semidavil.data.strong import StrongView
from examples.semidavil.data.task import load_task, streams
from examples.semidavil.engine import Engine
from examples.semidavil.evaluation import evaluate, predict, sliding_window, table
from examples.semidavil.grid import GRIDS, load_grid
from examples.semidavil.losses import NAMES, ConsistencyLoss, build_loss
from examples.semidavil.model.captions import DomainCaptions, PredictedCaptions
from examples.semidavil.pictures import painted, write_pictures
from examples.semidavil.train import main, train


@pytest.fixture
def config(street_folder) -> Config:
    """The smoke configuration on the toy target."""
    config = load_config("smoke", ["data.budget=2", "data.crop=[16, 24]", "training.window=[16, 24]"])
    return replace(config, data=replace(config.data, target=str(street_folder), streets=3))


def _engine(config, folder):
    task = load_task(config.data, folder)
    return Engine(config, task, torch.device("cpu")), task


def _batch(config, task, folder, step=0):
    found = streams(task, config.data, folder, config.training.seed, unlabelled=config.components.consistency)
    return Steps(found, config.training.seed, step, step + 1)[0]


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


def test_no_confident_pixel_is_zero_with_a_gradient():
    student = torch.zeros(1, 3, 4, requires_grad=True)
    loss, share = ConsistencyLoss(0.9)(student, torch.zeros(1, 3, 4))
    loss.backward()
    assert loss == share == 0
    assert not student.grad.any()


def test_losses_and_their_refusals():
    logits, labels = torch.randn(2, 5, 6, 7), torch.randint(0, 5, (2, 6, 7))
    labels[0, :2] = 255
    for name in NAMES:
        assert build_loss(name, {}, 255)(logits, labels).isfinite()
    cross_entropy = nn.functional.cross_entropy(logits, labels, ignore_index=255)
    assert torch.allclose(build_loss("CE", {}, 255)(logits, labels), cross_entropy)
    assert torch.allclose(build_loss("FL", {"gamma": 0.0}, 255)(logits, labels), cross_entropy)
    with pytest.raises(ValueError, match="loss must be one of CE, WCE"):
        build_loss("OHEM", {}, 255)
    for options in ({"threshold": 2.0}, {"confidence": "both"}, {"normalize": "batch"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ConsistencyLoss(**options)


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_of_table_6_trains(config, tmp_path, name):
    config = replace(config, loss=name)
    engine, task = _engine(config, tmp_path)
    before = [p.clone() for p in engine.networks.student.parameters()]
    values = engine.advance(_batch(config, task, tmp_path))
    assert all(value.isfinite() for value in values.values())
    assert set(values) == {"loss", "supervised", "consistency", "confident"}
    assert any(
        not torch.equal(a, b) for a, b in zip(before, engine.networks.student.parameters(), strict=True)
    )


@pytest.mark.parametrize("off", ["consistency", "dyce", "pretraining", "guidance"])
def test_every_component_of_table_3_can_be_switched_off(config, tmp_path, off):
    config = replace(config, components=ComponentConfig(**{off: False}))
    engine, task = _engine(config, tmp_path)
    batch = _batch(config, task, tmp_path)
    values = engine.advance(batch)
    assert values["loss"].isfinite()
    assert ("consistency" in values) == ("unlabelled" in batch) == (off != "consistency")
    assert (type(engine.supervised).__name__ == "DyCELoss") == (off != "dyce")
    assert (engine.networks.text is None) == (off == "guidance")
    # frozen random features would tell nothing about pretraining
    assert (
        (engine.networks.vision is None)
        == (engine.networks.student.vision is not None)
        == (off == "pretraining")
    )


@pytest.mark.parametrize("reading", ["code", "cross_attention", "correlation"])
def test_every_guidance_trains(config, tmp_path, reading):
    config = replace(config, model=replace(config.model, guidance=reading, captions="domain"))
    engine, task = _engine(config, tmp_path)
    assert engine.advance(_batch(config, task, tmp_path))["loss"].isfinite()


def test_the_step_is_the_sum_of_its_parts(config, tmp_path):
    config = replace(config, consistency=replace(config.consistency, weight=0.5))
    engine, task = _engine(config, tmp_path)
    values = engine.advance(_batch(config, task, tmp_path))
    assert float(values["loss"]) == pytest.approx(float(values["supervised"] + 0.5 * values["consistency"]))
    assert int(engine.networks.teacher.n_averaged) == 2
    assert engine.networks.text.training is engine.networks.vision.training is False


def test_mixed_precision_and_a_trained_encoder(config, tmp_path):
    recipe = replace(config.training, amp="bfloat16")
    config = replace(config, training=recipe, model=replace(config.model, train_vision=True))
    engine, task = _engine(config, tmp_path)
    weight = engine.networks.student.vision.model.embeddings.patch_embedding.weight
    before = weight.detach().clone()
    assert engine.advance(_batch(config, task, tmp_path))["loss"].dtype == torch.float32
    assert not torch.equal(weight, before)


@pytest.mark.parametrize("schedule", ["poly", "constant", "one_cycle"])
def test_schedules(config, tmp_path, schedule):
    recipe = replace(config.training, schedule=schedule, iterations=10)
    engine, _ = _engine(replace(config, training=recipe), tmp_path)
    rates = []
    for _ in range(10):
        rates.append(engine.scheduler.get_last_lr()[0])
        engine.optimizer.step()
        engine.scheduler.step()
    if schedule == "poly":
        assert rates == pytest.approx([1e-3 * (1 - t / 10) ** 0.9 for t in range(10)])
    else:
        assert max(rates) == pytest.approx(1e-3, rel=0.05)
        assert (len({*rates}) == 1) == (schedule == "constant")


@pytest.mark.parametrize("stop_after", [1, 2, 4])
def test_a_stopped_run_goes_on_to_the_same_bits(config, tmp_path, stop_after):
    config = replace(config, loss="WCE", training=replace(config.training, checkpoint_every=3))
    kept = tmp_path / "kept"
    train(config, tmp_path / "whole", kept, progress=False)
    assert train(config, tmp_path / "parts", kept, stop_after=stop_after, progress=False) == {}
    assert len(read_log(tmp_path / "parts" / "log.csv")) == stop_after
    before = torch.load(tmp_path / "parts" / CHECKPOINT)["seconds"]
    metrics = train(config, tmp_path / "parts", kept, progress=False)
    whole, parts = (
        torch.load(tmp_path / name / CHECKPOINT, weights_only=True) for name in ("whole", "parts")
    )
    for part in ("student", "teacher", "loss"):
        assert whole[part].keys() == parts[part].keys()
        assert [key for key in whole[part] if not torch.equal(whole[part][key], parts[part][key])] == []
    assert whole["teacher"]["n_averaged"] == 7
    logs = [read_log(tmp_path / name / "log.csv") for name in ("whole", "parts")]
    columns = ("step", "loss", "supervised", "consistency", "confident", "lr")
    assert [[row[c] for c in columns] for row in logs[0]] == [[row[c] for c in columns] for row in logs[1]]
    assert [row["step"] for row in logs[1]] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in read_log(tmp_path / "parts" / "scores_val_alt.csv")] == [3, 6]
    assert metrics["scores"] == json.loads((tmp_path / "whole" / "metrics.json").read_text())["scores"]
    assert list((tmp_path / "parts" / "tensorboard").glob("events*"))
    assert all(row["images_per_second"] > 0 for row in logs[1])
    assert 0 < before < torch.load(tmp_path / "parts" / CHECKPOINT)["seconds"]  # they add up over the parts
    assert metrics["image_size"] == [16, 24]
    assert (metrics["ranks"], metrics["threads"]) == (1, torch.get_num_threads())
    assert (
        train(config, tmp_path / "parts", Path("nowhere"), progress=False) == metrics
    )  # finished: not repeated


def test_a_run_that_ended_before_its_metrics_were_written_writes_them(config, tmp_path):
    config = replace(config, training=replace(config.training, iterations=2, eval_every=0))
    metrics = train(config, tmp_path / "run", tmp_path / "kept", progress=False)
    (tmp_path / "run" / "metrics.json").unlink()
    again = train(config, tmp_path / "run", tmp_path / "kept", progress=False)
    assert again["scores"] == metrics["scores"]
    assert again["seconds"] == metrics["seconds"]
    assert len(read_log(tmp_path / "run" / "log.csv")) == 2


def test_checkpoints_of_before_there_were_ranks_go_on(config, tmp_path):
    config = replace(config, training=replace(config.training, iterations=3))
    whole = train(config, tmp_path / "whole", tmp_path / "kept", progress=False)
    train(config, tmp_path / "run", tmp_path / "kept", stop_after=1, progress=False)
    state = torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)
    del state["rank_random_states"], state["seconds"]
    torch.save(state, tmp_path / "run" / CHECKPOINT)
    metrics = train(config, tmp_path / "run", tmp_path / "kept", progress=False)
    assert metrics["scores"] == whole["scores"]


def test_throughput_is_the_mean_since_the_last_row(config, tmp_path, monkeypatch):
    """Six images a step; the clock ticks when it is read: at the start, at rows, before and after pauses."""
    ticks = iter(range(1000))
    monkeypatch.setattr(provenance.time, "perf_counter", lambda: float(next(ticks)))
    config = replace(config, training=replace(config.training, iterations=4, log_every=2, eval_every=0))
    train(config, tmp_path / "run", tmp_path / "kept", progress=False)
    rows = read_log(tmp_path / "run" / "log.csv")
    assert [row["images_per_second"] for row in rows] == [12.0, 12.0]  # two steps, one tick


@pytest.mark.slow
def test_workers_change_nothing(config, tmp_path):
    logs = []
    for workers in (0, 2):
        run = replace(config, training=replace(config.training, workers=workers))
        train(run, tmp_path / str(workers), tmp_path / "kept", progress=False)
        logs.append([row["loss"] for row in read_log(tmp_path / str(workers) / "log.csv")])
    assert logs[0] == logs[1]


def test_labels_of_unlabelled_images_change_nothing(config, street_folder, tmp_path):
    """Overwrite them, and everything stays the same to the last bit: captions, losses, weights."""
    train(config, tmp_path / "before", tmp_path / "kept", progress=False)
    labelled = (
        (tmp_path / "kept" / "splits" / "camvid-train_alt-seed42" / "labelled_2.txt").read_text().split()
    )
    images = (street_folder / "splits" / "train_alt.txt").read_text().split()
    changed = sorted(set(images) - set(labelled))
    assert len(changed) == 2
    for stem in changed:
        path = street_folder / "train" / "labels" / f"{stem}.png"
        Image.new("L", (32, 24), 10).save(path)
    train(config, tmp_path / "after", tmp_path / "kept", progress=False)
    before, after = (
        torch.load(tmp_path / name / CHECKPOINT, weights_only=True) for name in ("before", "after")
    )
    for part in ("student", "teacher"):
        assert all(torch.equal(before[part][key], after[part][key]) for key in before[part])


def test_captions_come_from_the_teacher_and_not_from_labels(config, tmp_path):
    engine, task = _engine(config, tmp_path)
    batch = _batch(config, task, tmp_path)
    seen = []
    captioner = engine.describe._captioner
    assert isinstance(captioner, PredictedCaptions)
    engine.describe._captioner = lambda names, predict: seen.extend(captioner(names, predict)) or seen
    engine.advance(batch)
    networks = _engine(config, tmp_path)[0].networks
    inputs = networks.inputs(torch.cat([images.image for images in batch.values()]))
    domain = DomainCaptions(task.classes, config.model.scene)([""] * 6, None)
    assert seen == captioner(
        [""] * 6, lambda: networks.teacher(inputs, networks.text(domain), (16, 24)).argmax(1)
    )


def test_refusals(config, tmp_path):
    nothing = replace(config, data=replace(config.data, budget=0, use_source=False))
    with pytest.raises(ValueError, match=r"nothing is labelled: raise data\.budget"):
        train(nothing, tmp_path / "run", tmp_path, progress=False)
    train(config, tmp_path / "run", tmp_path, stop_after=1, progress=False)
    with pytest.raises(ValueError, match="another configuration"):
        train(replace(config, loss="CE"), tmp_path / "run", tmp_path, progress=False)


def test_a_loss_that_is_not_finite_stops_the_run(config, tmp_path):
    config = replace(config, consistency=replace(config.consistency, weight=float("inf")))
    with pytest.raises(FloatingPointError, match="at step 1: lower training"):
        train(config, tmp_path / "run", tmp_path, progress=False)


def test_sliding_windows_cover_the_image():
    image = torch.rand(1, 3, 10, 13)
    seen = []

    def network(window):
        seen.append(tuple(window.shape[-2:]))
        return window * 2

    for window, stride in (
        ((4, 5), None),
        ((4, 5), (1, 1)),
        ((10, 13), None),
        ((99, 6), (7, 6)),
        (None, None),
    ):
        assert torch.allclose(sliding_window(network, image, window, stride), image * 2)
    assert set(seen) == {(4, 5), (10, 13), (10, 6)}
    with pytest.raises(ValueError, match="stride must be at most the window"):
        sliding_window(network, image, (4, 5), (4, 6))


def test_scores_are_those_of_a_confusion_matrix(config, tmp_path):
    engine, task = _engine(config, tmp_path)
    task = replace(task, means={"mIoU2": (3, 4)})
    entry = evaluate(engine, task)["val_alt"]
    test, confusion = task.tests["val_alt"], torch.zeros(11, 11)
    engine.networks.student.eval()
    for i, name in enumerate(test.names):
        label, guess = test.label(i), predict(engine, name, test.image(i)).argmax(0)
        for y, x in (label != 255).nonzero().tolist():
            confusion[label[y, x], guess[y, x]] += 1
    for c in range(11):
        union = confusion[c].sum() + confusion[:, c].sum() - confusion[c, c]
        assert entry["iou"][c] == (pytest.approx(float(confusion[c, c] / union)) if union else None)
    wanted = [value for value in entry["iou"][3:5] if value is not None]
    assert entry["mean_iou"] == {"mIoU2": pytest.approx(sum(wanted) / len(wanted))}
    assert entry["pixels"] == confusion.sum(1).tolist()
    assert table(entry, task).startswith("| mIoU2 | road | pavement |\n")


def test_a_resized_image_is_scored_at_its_labels_size(config, tmp_path):
    """Images at half the size: each prediction is enlarged to the label file, and every labelled pixel counts."""
    data = replace(
        config.data,
        kind="gta5-cityscapes",
        source=str(write_gta5(tmp_path / "gta5")),
        target=str(write_cityscapes(tmp_path / "cityscapes")),
        test_size=(6, 8),
    )
    task = load_task(data, tmp_path / "kept")
    test = task.tests["val"]
    assert test.image(0).shape == (3, 6, 8)
    assert test.label(0).shape == (12, 16)
    engine = Engine(replace(config, data=data), task, torch.device("cpu"))
    entry = evaluate(engine, task)["val"]
    assert sum(entry["pixels"]) == sum(int((test.label(i) != 255).sum()) for i in range(2))
    write_pictures(engine, test, task.classes, tmp_path, "val")
    with Image.open(tmp_path / "predictions_val.png") as picture:
        assert picture.size == (3 * 8 + 2 * 4, 2 * 6 + 4)


def test_gta5_to_cityscapes_end_to_end(config, tmp_path):
    data = replace(
        config.data,
        kind="gta5-cityscapes",
        source=str(write_gta5(tmp_path / "gta5")),
        target=str(write_cityscapes(tmp_path / "cityscapes")),
        source_size=(24, 32),
        target_size=(16, 32),
        crop=(16, 16),
    )
    config = replace(config, data=data, training=replace(config.training, iterations=2, window=(8, 8)))
    metrics = train(config, tmp_path / "run", tmp_path / "kept", progress=False)
    assert len(metrics["classes"]) == len(metrics["scores"]["val"]["iou"]) == 19
    assert metrics["labelled"] == 2
    assert (tmp_path / "run" / "scores.md").read_text().startswith("val\n\n| mIoU19 | road | sidewalk |")
    with Image.open(tmp_path / "run" / "predictions_val.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (2 * 12 + 4, 3 * 16 + 2 * 4, 3)  # two test images, three pictures each
    assert np.array_equal(pixels[:12, 1:16], pixels[:12, 21:36])  # the toy images wear their labels' colours
    assert not pixels[:12, 20].any()
    with Image.open(tmp_path / "run" / "predictions_alone_val.png") as picture:
        assert np.array_equal(np.asarray(picture), pixels[:, 40:])


def test_colours_of_camvids_classes():
    colours = painted(torch.tensor([[0, 4, 10, 255]]), STREET_CLASSES)
    assert colours.tolist() == [[[70, 130, 180], [244, 35, 232], [119, 11, 32], [0, 0, 0]]]


def test_logs_drop_the_rows_that_will_come_again(tmp_path):
    with Logs(tmp_path, 0) as logs:
        for step in (1, 2, 3):
            logs.write("log", step, {"loss": step / 2})
    with Logs(tmp_path, 2) as logs:
        logs.write("log", 3, {"loss": 7.0})
    assert read_log(tmp_path / "log.csv") == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 1.0},
        {"step": 3, "loss": 7.0},
    ]


def test_shipped_configurations_are_valid_and_say_what_they_are():
    paths = sorted(CONFIGS.glob("*.toml"))
    assert paths
    configs = {path.stem: load_config(path) for path in paths}
    assert all(config.note for config in configs.values())
    assert len({json.dumps(config.as_dict()) for config in configs.values()}) == len(configs)


def test_grids_name_valid_runs_that_differ():
    for path in sorted(GRIDS.glob("*.toml")):
        found = load_grid(path.stem)
        for budget, seed in product(found.budgets, found.seeds):
            runs = [row.folder(Path(), budget, seed) for row in found.rows]
            assert len(set(runs)) == len(runs)
        assert len({row.label for row in found.rows}) == len(found.rows)
    with pytest.raises(FileNotFoundError, match="those here are camvid_components"):
        load_grid("nonesuch")


def test_a_grid_from_runs_to_its_table(street_folder, tmp_path, capsys):
    path = tmp_path / "tiny.toml"
    path.write_text(
        'title = "Tiny"\nconfig = "smoke"\nbudgets = [1, 2]\nseeds = [0, 1]\n'
        '[[row]]\nlabel = "CE"\nset = [\'loss="CE"\', "training.iterations=1", "training.eval_every=0"]\n'
    )
    folders = [
        "--target",
        str(street_folder),
        "--runs",
        str(tmp_path / "runs"),
        "--out",
        str(tmp_path / "out"),
    ]
    grid.main(["report", str(path), *folders])
    assert "No run is finished" in capsys.readouterr().out
    grid.main(["run", str(path), "--budgets", "2", "--device", "cpu", *folders])
    grid.main(["run", str(path), "--budgets", "1", "--seeds", "1", "--device", "cpu", *folders])
    grid.main(["report", str(path), *folders])
    text = (tmp_path / "out" / "tiny.md").read_text()
    assert "## val_alt, mIoU11\n\n|  | 1 labels | 2 labels |\n| --- | --- | --- |\n| CE | " in text
    assert text.count("± ") == 3  # the caption's, and two of the cell with two seeds
    assert "(1†) | " in text
    assert "(2) |\n" in text
    assert (
        "Runs: 3, of 1 steps; batch 2 of each stream, pieces a step: 1; size of the training images" in text
    )
    assert "32×48; seeds 0, 1; " in text
    assert "## Confident pixels" in text
    rows = json.loads((tmp_path / "out" / "tiny.json").read_text())["rows"]
    assert 0 <= rows["CE"]["2"][0]["confident"] <= 1
    assert [run["seed"] for run in rows["CE"]["2"]] == [0, 1]
    assert len(rows["CE"]["2"][0]["scores"]["val_alt"]["iou"]) == 11
    assert {"commit", "versions", "seconds", "device", "threads", "ranks"} <= rows["CE"]["2"][0].keys()
    assert (tmp_path / "out" / "plots" / "tiny_scores_val_alt.png").is_file()
    assert "![scores of each row on val_alt](plots/tiny_scores_val_alt.png)" in text


def test_the_command_line(config, street_folder, tmp_path, capsys):
    overrides = ["data.budget=2", "data.streets=2", "training.iterations=1", "training.eval_every=0"]
    main(
        [
            "smoke",
            "--target",
            str(street_folder),
            "--runs",
            str(tmp_path),
            "--device",
            "cpu",
            "--vision",
            "clip-tiny",
            "--text",
            "clip-tiny",
            "--set",
            *overrides,
        ]
    )
    assert "| mIoU11 | sky |" in capsys.readouterr().out
    folder = run_folder(tmp_path, "smoke", load_config("smoke", overrides).as_dict())
    assert json.loads((folder / "config.json").read_text())["data"]["budget"] == 2
    with pytest.raises(ValueError, match="vision must be one of clip:PATH-OR-HUB-NAME"):
        main(["smoke", "--target", str(street_folder), "--runs", str(tmp_path), "--vision", "resnet"])
    with pytest.raises(SystemExit):
        main([])


def test_the_smoke_run(capsys):
    main(["--smoke", "--device", "cpu"])
    assert "stopped after step 3 and resumed: the same losses and scores" in capsys.readouterr().out


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
