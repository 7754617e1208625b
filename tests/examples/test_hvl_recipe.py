"""HVL's recipe: scaling, colours, padding, rare classes, warm-up, epochs; what is printed is configured."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from examples.common.clip import load_clip
from examples.common.recipe import polynomial
from examples.common.sampling import generator
from examples.common.scenes.augment import random_crop_flip
from examples.common.scenes.domain import PairDomain
from examples.common.vision import build_vision
from examples.hvl.config import Config, DataConfig, load_config
from examples.hvl.data.augment import WeakView, scaled
from examples.hvl.data.task import Task, streams
from examples.hvl.schedule import with_steps
from examples.hvl.train import train


def test_scaling_keeps_image_and_label_together() -> None:
    label = torch.tensor([[0, 7], [3, 255]]).repeat_interleave(8, 0).repeat_interleave(12, 1)
    image = (label / 255.0).expand(3, -1, -1)
    for factor in (0.5, 1.5, 2.0):
        resized, plane = scaled(image, label, factor)
        assert plane.shape == resized.shape[1:] == (round(16 * factor), round(24 * factor))
        assert set(plane.unique().tolist()) == {0, 3, 7, 255}
        corners = plane[:: plane.shape[0] - 1, :: plane.shape[1] - 1]
        assert torch.equal(corners, torch.tensor([[0, 7], [3, 255]]))
        torch.testing.assert_close(resized[0, :: plane.shape[0] - 1, :: plane.shape[1] - 1], corners / 255.0)


def test_the_factor_is_uniform_between_one_half_and_two() -> None:
    """A stripe's width tells the factor."""
    image = torch.zeros(3, 40, 40)
    label = torch.zeros(40, 40, dtype=torch.long)
    view, sizes = WeakView(scale=2.0), []
    for i in range(300):
        _, plane = view(image, label, (80, 80), generator(0, i, 0), flip=False)
        inside = plane != 255
        sizes.append(int(inside.any(1).sum()) / 40)
        assert inside.any(0).sum() == inside.any(1).sum()
    assert min(sizes) < 0.55
    assert max(sizes) > 1.95
    assert sum(sizes) / 300 == pytest.approx(1.25, abs=0.08)
    assert sum(size < 1 for size in sizes) / 300 == pytest.approx(1 / 3, abs=0.08)


def test_colours_change_the_image_alone_and_are_a_function_of_the_draws() -> None:
    image = torch.rand(3, 24, 32, generator=torch.Generator().manual_seed(1))
    label = torch.arange(24 * 32).view(24, 32) % 5
    view, changed = WeakView(jitter=0.5), 0
    for i in range(60):
        torch.manual_seed(i)
        seen, plane = view(image, label, (12, 16), generator(0, i, 0))
        before = torch.random.get_rng_state()
        again, _ = view(image, label, (12, 16), generator(0, i, 0))
        assert torch.equal(seen, again)
        assert torch.equal(before, torch.random.get_rng_state())  # dropout's draws are not touched
        plain, same = random_crop_flip(image, label, (12, 16), generator(0, i, 0))
        assert torch.equal(plane, same)
        assert seen.min() >= 0
        assert seen.max() <= 1
        changed += not torch.equal(seen, plain)
    assert 36 < changed < 58  # four fifths


def test_without_scale_and_jitter_the_view_is_that_of_before() -> None:
    image, label = torch.rand(3, 24, 32), torch.randint(0, 5, (24, 32))
    for i in range(10):
        ours = WeakView()(image, label, (12, 40), generator(0, i, 0))
        theirs = random_crop_flip(image, label, (12, 40), generator(0, i, 0))
        assert all(map(torch.equal, ours, theirs))


def _pairs(labels: list[Tensor]) -> PairDomain:
    images = [torch.full((3, *label.shape), 0.5) for label in labels]
    return PairDomain(list(zip(images, labels, strict=True)), [f"i{i}" for i in range(len(labels))])


def _task(labels: list[Tensor], classes: int) -> Task:
    data = _pairs(labels)
    return Task(data, data, {"val": data}, tuple(f"c{i}" for i in range(classes)))


def test_padding_is_told_of_unlabelled_images_too() -> None:
    task = _task([torch.zeros(8, 8, dtype=torch.long)] * 3, 2)
    found = streams(task, DataConfig(crop=(12, 10), batch_size=4, scale=1.5), 0)
    batch = found["unlabelled"].batch(0, 0)
    assert batch.label is None
    assert batch.padding is not None
    assert batch.padding.shape == (4, 12, 10)
    black = (batch.image == 0).all(1)
    assert torch.equal(batch.padding, black)
    assert black.any()
    assert not black.all()
    assert torch.equal(batch.to(torch.device("cpu"))[1:3].padding, batch.padding[1:3])
    labelled = found["labelled"].batch(0, 0)
    assert labelled.padding is None
    assert torch.equal(labelled.label == 255, (labelled.image == 0).all(1))


def test_rare_classes_are_drawn_more_often(tmp_path: Path) -> None:
    """One image in ten has the rare class; it fills a part of it."""
    common = torch.zeros(8, 8, dtype=torch.long)
    rare = common.clone()
    rare[:4, :4] = 1
    task = _task([rare, *[common] * 9], 2)
    plain = DataConfig(crop=(8, 8), batch_size=10)
    wanted = replace(plain, rare_class_sampling=True)

    def share(config: DataConfig) -> float:
        stream = streams(task, config, 0, tmp_path)["labelled"]
        names = [name for step in range(20) for name in stream.batch(step, 0).names]
        return names.count("i0") / 200

    assert share(plain) == pytest.approx(0.1)
    assert share(wanted) > 0.9
    flat = replace(wanted, rare_class_temperature=100.0)
    assert share(flat) == pytest.approx(
        0.55, abs=0.1
    )  # half of the draws ask for it, and a tenth of the others
    assert len(list(tmp_path.glob("class_counts-*.pt"))) == 1
    other = streams(task, wanted, 0)["unlabelled"]
    assert [other.sampler(i) for i in range(10)] == [
        streams(task, plain, 0)["unlabelled"].sampler(i) for i in range(10)
    ]


def test_rates_rise_for_the_warm_up_and_fall_by_the_polynomial() -> None:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": weights[:1]}, {"params": weights[1:], "lr": 1e-5}], lr=1e-4)
    scheduler = polynomial(optimizer, 100, 0.9, 10)
    rates = []
    for _ in range(100):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    head = [rate for rate, _ in rates]
    assert head.index(max(head)) in (9, 10)
    assert head[:10] == sorted(head[:10])
    assert head[10:] == sorted(head[10:], reverse=True)
    assert head[0] == pytest.approx(1e-4 / 11)
    assert head[50] == pytest.approx(1e-4 * 0.5**0.9)
    assert head[-1] == pytest.approx(1e-4 * 0.01**0.9)
    assert all(encoder == pytest.approx(rate / 10) for rate, encoder in rates)


# Table: the unlabelled images of the published splits, by data set and budget.
UNLABELLED = {("voc", 92): 10490, ("coco", 232): 118055, ("ade20k", 158): 20052, ("cityscapes", 100): 2875}


@pytest.mark.parametrize(("kind", "epochs"), [("voc", 80), ("coco", 10), ("ade20k", 40), ("cityscapes", 240)])
def test_configurations_have_the_recipe_as_printed(kind: str, epochs: int) -> None:
    config = load_config(kind)
    data, recipe = config.data, config.training
    assert (data.batch_size, data.scale, data.jitter > 0, data.rare_class_sampling) == (8, 2.0, True, True)
    side = 801 if kind == "cityscapes" else 512
    assert data.crop == recipe.window == (side, side)
    assert (recipe.epochs, recipe.warmup, recipe.power, recipe.schedule) == (epochs, 1500, 0.9, "poly")
    assert (recipe.lr, recipe.vision_lr) == (1e-4, 0.1)
    assert config.model.vision == config.model.text == "clip:openai/clip-vit-base-patch16"
    steps = with_steps(config, UNLABELLED[kind, data.budget]).training.iterations
    assert steps == epochs * (UNLABELLED[kind, data.budget] // 8)
    assert recipe.warmup < steps / 20


def test_small_data_has_a_recipe_of_its_own() -> None:
    config = load_config("camvid")
    assert with_steps(config, 264) == config
    assert (config.training.epochs, config.training.warmup, config.data.scale) == (0, 0, 1.0)


def test_an_epoch_needs_a_whole_batch() -> None:
    config = load_config("voc")
    with pytest.raises(ValueError, match=r"training\.iterations, and training\.epochs to 0"):
        with_steps(config, 7)
    remedy = load_config("voc", ["training.epochs=0", "training.iterations=5"])
    assert with_steps(remedy, 7).training.iterations == 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.scale=0.5", "scale must be at least 1"),
        ("data.jitter=1.5", "jitter"),
        ("training.epochs=-1", "epochs"),
    ],
)
def test_refusals(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config("smoke", [override])


@pytest.fixture
def config(street_folder: Path) -> Config:
    """Four images, two of them labelled, in batches of two: an epoch is one step."""
    overrides = ["data.budget=2", "data.crop=[16, 24]", "training.window=[16, 24]", "model.decoder_layers=1"]
    recipe = ["training.epochs=5", "training.warmup=2", "data.scale=2.0", "data.jitter=0.5"]
    found = load_config("smoke", [*overrides, *recipe, "data.rare_class_sampling=true"])
    return replace(found, data=replace(found.data, folder=str(street_folder)))


def test_a_run_by_the_recipe(config: Config, tmp_path: Path) -> None:
    metrics = train(config, tmp_path / "run", tmp_path / "kept", progress=False)
    assert (metrics["steps"], metrics["labelled"], metrics["unlabelled"]) == (5, 2, 2)
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert kept["training"]["iterations"] == 5
    with (tmp_path / "run" / "log.csv").open() as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    factors = [min((step + 1) / 3, 1) * (1 - step / 5) ** 0.9 for step in range(5)]
    assert rates == pytest.approx([1e-3 * factor for factor in factors], rel=1e-4)
    stopped = tmp_path / "stopped"
    assert train(config, stopped, tmp_path / "kept", stop_after=2, progress=False) == {}
    again = train(config, stopped, tmp_path / "kept", progress=False)
    assert again["scores"] == metrics["scores"]  # resumed to the same bits


def test_padding_is_never_sure(street_folder: Path, tmp_path: Path) -> None:
    """Of crops twice as high and wide as their images a quarter is image; random networks are sure of any of it."""
    overrides = ["data.budget=2", "data.crop=[48, 64]", "consistency.cutmix=false", "training.iterations=1"]
    found = load_config("smoke", [*overrides, "data.scale=1.0", "training.eval_every=0"])
    config = replace(found, data=replace(found.data, folder=str(street_folder)))
    train(config, tmp_path / "run", tmp_path / "kept", progress=False)
    with (tmp_path / "run" / "log.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert 0.1 < float(row["confident"]) <= 0.25


# The encoders


@pytest.mark.parametrize("kind", ["eva02_clip", "siglip", None])
def test_what_is_no_clip_is_refused_with_a_remedy(tmp_path: Path, kind: str | None) -> None:
    content = {"architecture": "eva02_large_patch14_clip_224"} if kind is None else {"model_type": kind}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"has no EVA02-CLIP.*clip:openai/clip-vit-large-patch14"):
        build_vision(f"clip:{tmp_path}")


def test_a_clip_of_other_patches_is_read_from_its_folder(tmp_path: Path) -> None:
    """The remedy, in small: a CLIP with patches of 14 pixels, as the large one."""
    from transformers import CLIPModel

    settings = load_clip("clip-tiny").config
    settings.vision_config.patch_size, settings.vision_config.image_size = 14, 28
    CLIPModel(settings).save_pretrained(tmp_path)
    vision = build_vision(f"clip:{tmp_path}")
    assert [tuple(x.shape[2:]) for x in vision(torch.rand(1, 3, 28, 42))] == [(2, 3)] * 3
