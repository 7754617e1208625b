"""T2S-DA's step, what each switch changes in it, and the configurations that are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from examples.common.scenes.batches import Steps
from examples.common.scenes.task import load_task
from examples.common.scenes.toy import write_street_folder
from examples.t2s_da.config import Config, load_config
from examples.t2s_da.engine import Engine
from examples.t2s_da.scene import scene_streams

SMALL = ["data.crop=[16, 24]", "data.streets=3", "training.window=[16, 24]", "reweighting.momentum=0.5"]


def _config(folder: Path, *overrides: str) -> Config:
    config = load_config("smoke", [*SMALL, *overrides])
    return replace(config, data=replace(config.data, target=str(folder)))


@pytest.fixture
def config(street_folder) -> Config:
    return _config(street_folder)


def _two_steps(config, folder):
    """What two steps log, exactly."""
    task = load_task(config.data, folder)
    batches = Steps(scene_streams(config, task, folder), config.training.seed, 0, 2)
    engine = Engine(config, task.classes, torch.device("cpu"))
    return [{name: float(value) for name, value in engine.advance(batches[i]).items()} for i in range(2)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A toy target, and what two steps of the whole method log on it."""
    folder = tmp_path_factory.mktemp("switches")
    write_street_folder(folder / "target", size=(24, 32), train=4, test=2)
    config = _config(folder / "target")
    return folder, _two_steps(config, folder / "kept")


def test_the_step_is_the_sum_of_its_parts(place):
    _, steps = place
    for values in steps:
        total = (
            values["source"] + values["target"] + 0.1 * values["pull"] + 0.005 * values["feature_distance"]
        )
        assert values["loss"] == pytest.approx(total, rel=1e-6)
        assert min(values[name] for name in LOSSES) > 0


SWITCHES = {
    "pull": (
        *('pull.objective="mse"', "pull.temperature=0.5", "pull.unreliable_fraction=0.1"),
        *("pull.queries_per_class=4", "pull.negatives=8", 'pull.pair_reduction="sum"'),
        *('pull.queries="random"', 'pull.queries="equal"'),
        *('pull.negatives_from="pooled"', 'pull.negatives_from="source"', 'pull.negatives_from="target"'),
        *('pull.queries_from="source"', 'pull.queries_from="target"'),
        *('pull.keys_from="target"', 'pull.keys_from="pseudo_target"'),
        *("reweighting.power=0.0", "reweighting.momentum=0.9", 'reweighting.absent="exclude"'),
        *('reweighting.of="none"', 'model.projector="encoder_last"', 'model.projector="decoder"'),
        *("translation.beta=0.2", 'translation.window="torch"', "translation.before_crop=false"),
        *(f'translation.engines=["{name}"]' for name in ("adain", "color_jitter", "gaussian_blur")),
        'translation.engines=["weather", "cartoon"]',
    ),
    "pull target": ('reweighting.of="target"',),
    "source target confident pull feature_distance": ("translation.size=[20, 28]",),
    "source feature_distance": ('components.cross_entropy="pseudo_target"',),
    "target": (
        *("self_training.strength=0.1", 'self_training.confidence="batch"'),
        *("self_training.ignore_top=3", "self_training.ignore_bottom=2"),
    ),
    "target confident": ("self_training.threshold=0.125",),
    "": (
        *("pull.weight=0.2", "self_training.weight=0.5", "model.ema_decay=0.5", "training.lr=1e-4"),
        *("feature_distance.weight=0.1", 'training.decay="polynomial"'),
    ),
}
GENERALIZED = (
    'mode="generalization"',
    "components.self_training=false",
    'reweighting.of="none"',
    'pull.negatives_from="source"',
)
LOSSES = ("source", "target", "confident", "pull", "feature_distance")


@pytest.mark.parametrize(
    ("changed", "switch"), [(changed, one) for changed, many in SWITCHES.items() for one in many]
)
def test_a_switch_changes_what_it_says_and_nothing_else(place, changed, switch):
    """In the first step, bit for bit: weights, images and draws are the same until the losses differ."""
    folder, (base, _) = place
    found = _two_steps(_config(folder / "target", switch), folder / "kept")[0]
    for name in LOSSES:
        assert (found[name] != base[name]) == (name in changed.split()), name


@pytest.mark.parametrize(
    ("part", "gone"),
    [
        ("pull", {"pull"}),
        ("self_training", {"target", "confident"}),
        ("feature_distance", {"feature_distance"}),
    ],
)
def test_a_component_that_is_off_leaves_the_others_as_they_are(place, part, gone):
    folder, (base, _) = place
    found = _two_steps(_config(folder / "target", f"components.{part}=false"), folder / "kept")[0]
    assert base.keys() - found.keys() == gone
    assert all(found[name] == base[name] for name in found.keys() - {"loss"})


def test_the_students_keys_differ_once_the_teacher_does(place):
    """The teacher starts as the student's copy; after a step they differ, and nothing but the pull loss sees it."""
    folder, base = place
    first, second = _two_steps(_config(folder / "target", 'pull.keys="student"'), folder / "kept")
    assert first == base[0]
    assert second["pull"] != base[1]["pull"]
    assert all(second[name] == base[1][name] for name in ("source", "target", "confident"))


def test_mixed_images_wear_the_labels_of_their_pixels(config, tmp_path):
    config = replace(config, self_training=replace(config.self_training, strength=0.0))
    task = load_task(config.data, tmp_path)
    batch = Steps(scene_streams(config, task, tmp_path), 0, 0, 1)[0]
    engine = Engine(config, task.classes, torch.device("cpu"))
    engine.teacher.eval()
    scene = engine.scene(batch)
    image, label, weight, confident = engine.mix(scene, engine.judge(scene.target.image))
    guess = engine.teacher.module.predict(scene.target.image).argmax(1)
    pasted = weight == 1
    assert image.shape == scene.source.image.shape
    assert 0 < pasted.float().mean() < 1
    assert torch.equal(label[pasted], scene.source.label[pasted])
    assert torch.equal(label[~pasted], guess[~pasted])
    shares = [float(w[~p].unique()) for w, p in zip(weight, pasted, strict=True)]  # one r an image
    assert float(confident) == pytest.approx(sum(shares) / 2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.budget=1"], "the source alone is labelled"),
        (["data.use_source=false"], "the source alone is labelled"),
        (['mode="generalization"'], "no target image to train on"),
        ([*GENERALIZED[:2]], 'needs reweighting.of = "none"'),
        ([*GENERALIZED[:3]], 'needs pull.negatives_from = "source"'),
        ([*GENERALIZED, 'pull.queries_from="target"'], "without the target"),
        (["data.crop=[16, 64]", "translation.size=[24, 32]"], "cut from translation.size"),
        (["components.self_training=false", 'reweighting.of="target"'], "weighs a loss that is off"),
        (["translation.beta=0.7"], "beta must be in"),
        (["pull.negatives=7"], "negatives"),
        (["pull.temperature=0.0"], "temperature"),
        (['pull.objective="mse"', 'pull.negatives_from="pooled"'], "has no negatives"),
        (["self_training.threshold=1.5"], "threshold must be in"),
        (["model.dropout=1.0"], "dropout must be in"),
        (["feature_distance.share=2.0"], "share must be in"),
        (["training.warmup=-1"], "warmup must be at least 0"),
        (["pull.tau=0.2"], "unknown key 'tau'"),
        (['translation.engines=["cyclegan"]'], "must be some of 'fda'"),
        (["translation.engines=[]"], "must be"),
    ],
)
def test_bad_configurations_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_config("smoke", overrides)
