"""The step, its components, exact resuming."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from semidavil_toy import batch as _batch
from semidavil_toy import engine as _engine
from semidavil_toy import toy_config

from examples.common import provenance
from examples.common.logs import read_log
from examples.common.training import CHECKPOINT
from examples.common.vision import ImageNetViT
from examples.semidavil.config import ComponentConfig, Config, ConsistencyConfig
from examples.semidavil.evaluation import evaluate
from examples.semidavil.losses import NAMES
from examples.semidavil.model.cache import FeatureCache
from examples.semidavil.model.captions import DomainCaptions, PredictedCaptions
from examples.semidavil.recipe import build_optimizer, build_scheduler
from examples.semidavil.train import train


@pytest.fixture
def config(street_folder) -> Config:
    """The smoke configuration on the toy target."""
    return toy_config(street_folder)


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
    assert isinstance(engine.networks.vision, ImageNetViT) == (off == "pretraining")


@pytest.mark.parametrize("reading", ["code", "cross_attention", "correlation", "vlga"])
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


def test_weighted_cross_entropy_has_the_sources_class_weights_and_keeps_them(config, tmp_path):
    config = replace(config, loss="WCE")
    engine, task = _engine(config, tmp_path)
    counts = sum(task.source.label(i).flatten().bincount(minlength=256)[:11] for i in range(3))
    wanted = [float(counts.sum() / (11 * n)) if n else 0.0 for n in counts]
    assert engine.supervised.weight.tolist() == pytest.approx(wanted, rel=1e-5)
    engine.advance(_batch(config, task, tmp_path))
    assert engine.supervised.weight.tolist() == pytest.approx(wanted, rel=1e-5)
    alone = replace(config, data=replace(config.data, use_source=False))
    engine, task = _engine(alone, tmp_path)
    place = [list(task.target.names).index(name) for name in task.labelled]
    counts = sum(task.target.label(i).flatten().bincount(minlength=256)[:11] for i in place)
    assert engine.supervised.weight[0] == pytest.approx(float(counts.sum() / (11 * counts[0])), rel=1e-5)
    chosen = replace(config, loss_options={"weight": [2.0] * 11})
    assert _engine(chosen, tmp_path)[0].supervised.weight.tolist() == [2.0] * 11


def test_the_target_alone_needs_no_source(config, tmp_path):
    """Supplement F's second part, Table 7: semi-supervised learning, without a rendered street or a folder of any."""
    config = replace(config, data=replace(config.data, use_source=False))
    config = replace(config, training=replace(config.training, iterations=2, eval_every=0))
    metrics = train(config, tmp_path / "run", tmp_path / "kept", progress=False)
    assert metrics["labelled"] == 2
    assert list((tmp_path / "kept").glob("streets*")) == []
    assert {"supervised", "consistency"} <= set(read_log(tmp_path / "run" / "log.csv")[0])


def test_nothing_but_resizing_and_cropping_changes_an_image(config, street_folder, tmp_path):
    """§4.2 names no flip and no view: the student gets the very pixels of a window of the image."""
    engine, task = _engine(config, tmp_path)
    batch = _batch(config, task, tmp_path)
    for images, domain in ((batch["unlabelled"], task.target), (batch["source"], task.source)):
        for image, name in zip(images.image, images.names, strict=True):
            whole = domain.image(list(domain.names).index(name))
            windows = whole.unfold(1, 16, 1).unfold(2, 24, 1).permute(1, 2, 0, 3, 4)
            assert (windows == image).flatten(2).all(2).any()
    seen = []
    encode = engine.networks.vision.forward
    engine.networks.vision.forward = lambda images: seen.append(images) or encode(images)
    engine.advance(batch)
    (once,) = seen
    assert torch.equal(once, torch.cat([images.image for images in batch.values()]))


def test_views_and_flips_are_switches(config, tmp_path):
    flipped = replace(config, data=replace(config.data, flip=True, batch_size=8))
    task = _engine(flipped, tmp_path)[1]
    straight = replace(flipped, data=replace(flipped.data, flip=False))
    pairs = [_batch(x, task, tmp_path)["source"].image for x in (flipped, straight)]
    mirrored = [torch.equal(a, b.flip(-1)) and not torch.equal(a, b) for a, b in zip(*pairs, strict=True)]
    assert 0 < sum(mirrored) < 8
    assert all(m or torch.equal(a, b) for m, a, b in zip(mirrored, *pairs, strict=True))
    strong = replace(config, consistency=replace(config.consistency, strength=0.5))
    engine, task = _engine(strong, tmp_path)
    seen = []
    encode = engine.networks.vision.forward
    engine.networks.vision.forward = lambda images: seen.append(images) or encode(images)
    batch = _batch(strong, task, tmp_path)
    engine.advance(batch)
    assert len(seen) == 2
    assert not torch.equal(seen[1], batch["unlabelled"].image)


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_kept_features_change_nothing_and_are_computed_once(config, tmp_path, where):
    config = replace(config, data=replace(config.data, crop=None, batch_size=1))
    model = replace(config.model, captions="domain")
    config = replace(config, model=model, consistency=ConsistencyConfig(threshold=0.1))
    kept = replace(config, data=replace(config.data, cache_features=where))
    plain, task = _engine(config, tmp_path)
    engine, _ = _engine(kept, tmp_path)
    assert {type(x.networks.cache) for x in (plain, engine)} == {type(None), FeatureCache}
    encode, seen = engine.networks.vision.forward, []
    engine.networks.vision.forward = lambda images: seen.append(images) or encode(images)
    for step in range(4):
        batch = _batch(config, task, tmp_path, step)
        values, wanted = engine.advance(batch), plain.advance(batch)
        assert {k: float(v) for k, v in values.items()} == pytest.approx(
            {k: float(v) for k, v in wanted.items()}, rel=1e-4
        )
    assert len(seen) == len({image.numpy().tobytes() for image in seen})
    before = len(seen)
    assert before <= 3 + 4  # streets and the target's training images
    evaluate(engine, task)
    windows = len(seen)
    assert windows > before
    evaluate(engine, task)
    assert len(seen) == windows  # a test image's windows are the same each time
    if where == "disk":
        other, _ = _engine(kept, tmp_path)
        other.networks.vision.forward = None  # all is read
        other.advance(batch)
        with torch.no_grad():
            next(engine.networks.vision.parameters()).add_(1)
        changed = FeatureCache(engine.networks.vision, "ClipVision values", tmp_path)
        assert len(list(tmp_path.glob("features-*"))) == 2
        image = batch["source"].image
        assert torch.equal(changed(image)[-1], engine.networks.vision(image)[-1])


def test_features_are_kept_only_where_images_never_change(config):
    whole = replace(config.data, crop=None, cache_features="memory")
    replace(config, data=whole)
    for change in (
        {"data": replace(whole, flip=True)},
        {"data": replace(whole, crop=(16, 24))},
        {"data": whole, "model": replace(config.model, train_vision=True)},
        {"data": whole, "consistency": replace(config.consistency, strength=0.5)},
    ):
        with pytest.raises(ValueError, match=r"data\.cache_features needs a frozen encoder"):
            replace(config, **change)


def test_mixed_precision_and_a_trained_encoder(config, tmp_path):
    recipe = replace(config.training, amp="bfloat16")
    config = replace(config, training=recipe, model=replace(config.model, train_vision=True))
    engine, task = _engine(config, tmp_path)
    weight = engine.networks.student.vision.model.embeddings.patch_embedding.weight
    before = weight.detach().clone()
    assert engine.advance(_batch(config, task, tmp_path))["loss"].dtype == torch.float32
    assert not torch.equal(weight, before)


def test_the_printed_recipe_is_the_default():
    recipe = Config().training
    student = torch.nn.Linear(2, 1, bias=False)
    optimizer = build_optimizer(student, recipe)
    rates = []
    velocity, weight = torch.zeros(1, 2), student.weight.detach().clone()
    scheduler = build_scheduler(optimizer, recipe, epoch=3)
    for t in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        gradient = torch.full((1, 2), float(t))
        student.weight.grad = gradient.clone()
        velocity = 0.9 * velocity + gradient + 2e-4 * weight
        weight = weight - rates[-1] * velocity
        optimizer.step()
        scheduler.step()
        assert torch.allclose(student.weight, weight)
    assert rates == pytest.approx([1e-4] * 3 + [0.9e-4] * 3 + [0.81e-4])


def test_an_epoch_is_one_of_the_targets_training_images(config, tmp_path):
    engine, task = _engine(config, tmp_path)
    assert (len(task.target.names), config.data.batch_size) == (4, 2)
    rates = []
    for _ in range(5):
        rates.append(engine.scheduler.get_last_lr()[0])
        engine.optimizer.step()
        engine.scheduler.step()
    assert rates == pytest.approx([1e-3, 1e-3, 0.9e-3, 0.9e-3, 0.81e-3])


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


def test_captions_of_the_target_come_from_the_teacher_and_not_from_labels(config, tmp_path):
    engine, task = _engine(config, tmp_path)
    batch = _batch(config, task, tmp_path)
    seen = []
    captioner = engine.describe._captioner
    assert isinstance(captioner, PredictedCaptions)
    engine.describe._captioner = lambda names, predict: seen.extend(captioner(names, predict)) or seen
    engine.advance(batch)
    networks = _engine(config, tmp_path)[0].networks
    source, *others = batch.values()
    inputs = networks.inputs(torch.cat([images.image for images in others]))
    domain = DomainCaptions(task.classes, config.model.scene)([""] * 4, None)
    predicted = networks.teacher(inputs, networks.text(domain), (16, 24)).argmax(1)
    assert seen == captioner([""] * 6, lambda: torch.cat([source.label, predicted]))


def test_refusals(config, tmp_path):
    nothing = replace(config, data=replace(config.data, budget=0, use_source=False))
    with pytest.raises(ValueError, match=r"nothing is labelled: raise data\.budget"):
        train(nothing, tmp_path / "run", tmp_path, progress=False)
    for wrong in ({"decay": 0.0}, {"momentum": 1.0}, {"decay_every": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            replace(config.training, **wrong)
    train(config, tmp_path / "run", tmp_path, stop_after=1, progress=False)
    with pytest.raises(ValueError, match="another configuration"):
        train(replace(config, loss="CE"), tmp_path / "run", tmp_path, progress=False)


def test_a_loss_that_is_not_finite_stops_the_run(config, tmp_path):
    config = replace(config, consistency=replace(config.consistency, weight=float("inf")))
    with pytest.raises(FloatingPointError, match="at step 1: lower training"):
        train(config, tmp_path / "run", tmp_path, progress=False)
