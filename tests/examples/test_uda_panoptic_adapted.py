"""EDAPS: what adapts, what does not, and that runs differ in the named switch alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from panoptic_files import write_cityscapes, write_synthia
from uda_files import checkpoint, different, losses

from examples.common.scenes.batches import Images, Steps
from examples.common.training import one_thread
from examples.uda_gbw.data import streams
from examples.uda_gbw.panoptic import grid
from examples.uda_gbw.panoptic.config import Config, load_config
from examples.uda_gbw.panoptic.data import load_task, source_classes
from examples.uda_gbw.panoptic.engine import Engine
from examples.uda_gbw.panoptic.labels import decoded
from examples.uda_gbw.panoptic.train import train

SIZE = (32, 48)
SMALL = ("data.streets=4", "data.target_streets=4", "data.test_streets=1")


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def _config(*overrides: str) -> Config:
    return load_config("smoke", [*SMALL, *overrides])


def _begun(config: Config, kept: Path) -> tuple[Engine, Mapping[str, Images]]:
    """An engine before its first step, and that step's batch."""
    task = load_task(config.data)
    classes = source_classes(task, config.data, kept)
    torch.manual_seed(config.training.seed)
    engine = Engine(config, classes, torch.device("cpu"))
    sources = streams(task, classes, config.semantic().data, config.training.seed)
    return engine, Steps(sources, config.training.seed, 0, 1)[0]


def _folders(place: Path) -> list[str]:
    """Overrides for a tiny SYNTHIA and a tiny Cityscapes."""
    source, target = write_synthia(place / "s", 3, SIZE), write_cityscapes(place / "c", 3, SIZE)
    sizes = [f"data.{kind}_size=[32, 48]" for kind in ("source", "target", "test")]
    return [
        'data.kind="synthia-cityscapes"',
        f'data.source="{source}"',
        f'data.target="{target}"',
        "data.crop=[32, 32]",
        *sizes,
    ]


# switch -> what of the first step's log it changes
SWITCHES = {
    'weighting.scheme="none"': {"source", "mixed"},
    "weighting.regularization=0.1": {"source", "mixed"},
    "weighting.confidence=false": {"mixed"},
    "instance.centre_weight=1.0": {"centre"},
    "instance.sigma=2.5": {"centre"},
    "instance.offset_weight=1.0": {"offset"},
    "feature_distance.weight=1.0": set(),  # the encoder is still the first one
    "self_training.strength=0.5": {"mixed"},
    "self_training.threshold=0.1": {"mixed", "confidence"},
    "self_training.ema_decay=0.5": set(),
    "training.lr=1e-4": set(),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_changes_what_it_says_and_nothing_else(tmp_path, switch):
    """In the first step, bit for bit: same weights, same images, same draws."""
    base, found = (
        engine.advance(batch)
        for engine, batch in (_begun(_config(*own), tmp_path) for own in ((), (switch,)))
    )
    assert base.keys() == found.keys()
    changed = {name for name in base if not torch.equal(base[name], found[name])}
    assert changed - {"loss"} == SWITCHES[switch]


def test_the_rows_of_the_table_begin_alike(tmp_path):
    """Same weights, same source images, and the source's losses of a scheme to the bit: adaptation adds, no more."""
    begun, logs = {}, {}
    for row in grid.ROWS:
        engine, batch = _begun(grid.config_of("smoke", row, 3, SMALL), tmp_path)
        halves = {half: getattr(engine.method, half).state_dict() for half in ("student", "instances")}
        begun[row] = copy.deepcopy((halves, batch["source"].image, batch["source"].label))
        logs[row] = engine.advance(batch)
    first, *others = begun.values()
    assert all(different(first, other) == [] for other in others)
    for loss in grid.LOSSES:
        one, other = (logs[f"{method}, {loss}"] for method in grid.METHODS)
        assert all(torch.equal(one[name], other[name]) for name in ("source", "centre", "offset"))
    for method in grid.METHODS:
        one, other = (logs[f"{method}, {loss}"] for loss in grid.LOSSES)
        assert all(torch.equal(one[name], other[name]) for name in ("centre", "offset"))
        assert not torch.equal(one["source"], other["source"])
    assert "mixed" not in logs["source only, GBW"]


def test_labels_of_the_target_change_nothing(tmp_path):
    """Overwrite those of all training images, and everything stays the same to the last bit."""
    config = load_config("smoke", [*_folders(tmp_path), "training.iterations=2"])
    train(config, tmp_path / "before", tmp_path / "kept", progress=False)
    labels = [*(tmp_path / "c" / "gtFine" / "train").glob("*/*.png")]
    assert len(labels) == 3
    for path in labels:
        Image.fromarray(np.full(SIZE, 26007, np.uint16)).save(path)
    train(config, tmp_path / "after", tmp_path / "kept", progress=False)
    one, other = (checkpoint(tmp_path / name) for name in ("before", "after"))
    assert different(one | {"seconds": 0}, other | {"seconds": 0}) == []
    assert losses(tmp_path / "before") == losses(tmp_path / "after")


def test_a_run_on_the_published_layouts_scores_cityscapes(tmp_path):
    config = load_config("smoke", [*_folders(tmp_path), "training.iterations=1", "data.test_size=[16, 24]"])
    metrics = train(config, tmp_path / "run", tmp_path / "kept", progress=False)
    entry = metrics["scores"]["val"]
    assert sum(entry["pixels"]) == 32 * 48 - 48 - 4 * 6  # all but the unlabelled row and the truck
    assert len(entry["iou"]) == 16
    ceiling = metrics["ceiling"]["val"]
    assert ceiling["all"] == pytest.approx({"mPQ": 1, "mSQ": 1, "mRQ": 1})
    assert "sky" in entry["each"]
    assert (tmp_path / "run" / "weights_mixed.csv").read_text().startswith("step,road,sidewalk,building,")


def test_instances_are_learnt_from_the_source_alone(tmp_path):
    """Mixed images give the instance branch no gradient, and the teacher has none."""
    engine, batch = _begun(_config("instance.centre_weight=0.0", "instance.offset_weight=0.0"), tmp_path)
    engine.method.train().step(batch["source"], batch["target"], 0)
    assert not any(p.grad.any() for p in engine.method.instances.parameters())
    assert all(p.grad is not None and p.grad.any() for p in engine.method.student.decoder.parameters())
    assert not any("instances" in key for key in engine.method.teacher.state_dict())
    engine, batch = _begun(_config(), tmp_path)
    engine.method.train().step(batch["source"], batch["target"], 0)
    assert all(p.grad.any() for p in engine.method.instances.centre.parameters())


def test_mixed_images_wear_the_classes_of_their_pixels(tmp_path):
    """Classes of the source, not codes, where its pixels are; the teacher's elsewhere."""
    engine, batch = _begun(_config("self_training.strength=0.0"), tmp_path)
    method, source, target = engine.method.eval(), batch["source"], batch["target"]
    pseudo, confidence = method.pseudo_labels(target.image)
    mixed = method.mix(source, target, pseudo, confidence / 2)
    pasted = mixed.confidence == 1
    label, instance = decoded(source.label)
    assert 0 < pasted.float().mean() < 1
    assert (instance[pasted] > 0).any()
    assert torch.equal(mixed.label[pasted], label[pasted])
    assert torch.equal(mixed.label[~pasted], pseudo[~pasted])
    assert torch.equal(mixed.image[:, 0][pasted], source.image[:, 0][pasted])


def test_the_teacher_follows_the_semantic_half(tmp_path):
    engine, batch = _begun(
        _config("self_training.ema_decay=0.25", "self_training.ema_warmup=false"), tmp_path
    )
    before = [p.clone() for p in engine.method.student.parameters()]
    engine.advance(batch)
    for old, new, mean in zip(
        before, engine.method.student.parameters(), engine.method.teacher.module.parameters(), strict=True
    ):
        assert torch.allclose(mean, 0.25 * old + 0.75 * new, atol=1e-6)


def test_rare_classes_are_drawn_more_often(tmp_path):
    config = _config("data.streets=12", "data.rare_class_temperature=0.01")
    task = load_task(config.data)
    classes = source_classes(task, config.data, tmp_path)
    rarest = int(classes.pixels.masked_fill(classes.pixels == 0, 1 << 40).argmin())
    share = []
    for rare in ("true", "false"):
        data = load_config(
            "smoke", [*SMALL, "data.streets=12", f"data.rare_class_sampling={rare}"]
        ).semantic()
        sampler = streams(task, classes, data.data, 0)["source"].sampler
        share.append(np.mean([bool(classes.counts[sampler(i), rarest]) for i in range(240)]))
    assert share[0] > share[1]
