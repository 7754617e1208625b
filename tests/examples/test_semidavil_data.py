"""Splits, sampling, crops, strong views, and the streams of a task."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from semidavil_files import write_cityscapes, write_gta5, write_synthia

from examples.common.sampling import Shuffled, generator
from examples.common.scenes.augment import random_crop_flip
from examples.common.scenes.batches import Steps
from examples.common.scenes.domain import PairDomain, select
from examples.common.scenes.sampling import RareClassSampler, class_counts
from examples.common.scenes.splits import nested_split, split_file
from examples.common.scenes.task import load_task, streams
from examples.semidavil.config import DataConfig, load_config

BUDGETS = [0, 100, 200, 500, 1000, 2975]  # of the paper
NAMES = [f"town_{i:04d}" for i in range(2975)]


def test_splits_are_nested_seeded_and_kept_in_files(tmp_path):
    lists = [split_file(tmp_path, NAMES, budget) for budget in BUDGETS]
    for smaller, larger in pairwise(lists):
        assert larger[: len(smaller)] == smaller
    assert [len(names) for names in lists] == BUDGETS
    assert (tmp_path / "labelled_100.txt").read_text().splitlines() == list(lists[1])
    assert split_file(tmp_path, NAMES, 100, seed=7) == lists[1]  # the file decides, once it is there
    assert nested_split(NAMES, 100, seed=7) != lists[1]
    assert nested_split(NAMES[::-1], 100) == lists[1]  # whatever the order of the folder


def test_a_split_of_other_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="between 0 and 3"):
        nested_split(NAMES[:3], 4)
    (tmp_path / "labelled_2.txt").write_text("town_0001\nelsewhere\n")
    with pytest.raises(ValueError, match=r"labelled_2\.txt must list 2 .* 1 are unknown"):
        split_file(tmp_path, NAMES, 2)
    with pytest.raises(ValueError, match="no image named"):
        select(PairDomain([], []), ["x"])


def test_an_epoch_has_every_image_once():
    sampler = Shuffled(5, seed=1, stream=0)
    seen = [sampler(i) for i in range(10)]
    assert sorted(seen[:5]) == sorted(seen[5:]) == list(range(5))
    assert seen == [Shuffled(5, seed=1, stream=0)(i) for i in range(10)]
    with pytest.raises(ValueError, match="no image"):
        Shuffled(0, seed=1, stream=0)


def test_rare_classes_are_drawn_more_often():
    counts = torch.tensor([[90, 10, 0], [100, 0, 0], [95, 0, 5], [100, 0, 0]])
    sampler = RareClassSampler(counts, 0, 0, temperature=0.1)
    share = counts.sum(0) / counts.sum()
    assert torch.allclose(sampler.probability.float(), torch.softmax((1 - share) / 0.1, 0))
    drawn = torch.tensor([sampler(i) for i in range(300)]).bincount(minlength=4)
    assert drawn[0] > 100
    assert drawn[2] > 100
    strict = RareClassSampler(counts, 0, 0, min_pixels=8)
    assert strict.probability[2] == 0
    assert {strict(i) for i in range(50)} <= {0, 1, 2, 3}
    with pytest.raises(ValueError, match="is this data labelled"):
        RareClassSampler(torch.zeros(3, 2, dtype=torch.long), 0, 0)


def test_class_counts_are_read_once(tmp_path):
    label = torch.tensor([[0, 1], [255, 1]])
    domain = PairDomain([(torch.zeros(3, 2, 2), label)], ["a"])
    assert class_counts(domain, 3, tmp_path / "c.pt").tolist() == [[1, 2, 0]]
    silent = PairDomain([(torch.zeros(3, 2, 2), None)], ["a"])
    assert class_counts(silent, 3, tmp_path / "c.pt").tolist() == [[1, 2, 0]]


def test_crops_cut_image_and_label_alike_and_pad_with_ignored_pixels():
    image = torch.arange(1.0, 21).view(1, 4, 5).expand(3, 4, 5)
    mirrored = 0
    for i in range(40):
        cut, label = random_crop_flip(image, image[0].long(), (3, 6), generator(0, i, 0))
        assert cut.shape == (3, 3, 6)
        assert torch.equal(cut[0].long(), label.where(label != 255, 0))
        assert (label == 255).sum() == 3
        mirrored += int(label[0, 0] == 255)
    assert 8 < mirrored < 32
    same, whole = random_crop_flip(image, image[0].long(), None, generator(0, 0, 0), flip=False)
    assert torch.equal(same, image)
    assert torch.equal(whole, image[0].long())


@pytest.fixture
def gta5_task(tmp_path):
    config = DataConfig(
        kind="gta5-cityscapes",
        source=str(write_gta5(tmp_path / "gta5")),
        target=str(write_cityscapes(tmp_path / "cityscapes")),
        budget=1,
        source_size=(24, 32),
        target_size=(12, 24),
        crop=(8, 8),
        batch_size=2,
        rare_class_sampling=True,
    )
    return config, load_task(config, tmp_path / "kept"), tmp_path / "kept"


def test_streams_of_gta5_to_cityscapes(gta5_task):
    config, task, folder = gta5_task
    assert (folder / "splits" / "cityscapes-seed42" / "labelled_1.txt").read_text().split() == list(
        task.labelled
    )
    assert len(task.unlabelled.names) == 3
    assert not set(task.labelled) & set(task.unlabelled.names)
    assert task.tests["val"].image(0).shape == (3, 12, 16)  # the file's own size
    found = streams(task, config, folder, seed=0, unlabelled=True)
    steps = Steps(found, seed=0, start=3, stop=5)
    batch = steps[0]
    assert list(batch) == ["source", "labelled", "unlabelled"]
    assert batch["source"].image.shape == (2, 3, 8, 8)
    assert batch["source"].label.shape == (2, 8, 8)
    assert batch["unlabelled"].label is None
    assert batch["labelled"].names == task.labelled * 2
    again = Steps(found, seed=0, start=0, stop=5)[3]
    assert all(torch.equal(again[name].image, batch[name].image) for name in batch)
    assert len(steps) == 2


def test_unlabelled_images_are_read_without_their_labels(gta5_task, monkeypatch):
    config, task, folder = gta5_task
    monkeypatch.setattr(task.target, "label", None)
    stream = streams(task, config, folder, seed=0, unlabelled=True)["unlabelled"]
    assert stream.batch(0, seed=0).label is None


def test_budgets_at_the_ends(gta5_task, tmp_path):
    config, _, folder = gta5_task
    none = load_task(load_config_with(config, budget=0), folder)
    assert list(streams(none, config, folder, 0, unlabelled=False)) == ["source"]
    every = load_task(load_config_with(config, budget=4), folder)
    assert len(every.unlabelled.names) == 4
    alone = load_config_with(config, use_source=False)
    assert list(streams(every, alone, folder, 0, unlabelled=False)) == ["labelled"]


def load_config_with(config, **changes):
    return type(config)(**{**vars(config), **changes})


def test_lists_of_other_seeds_and_targets_are_kept_apart(gta5_task, street_folder):
    config, task, folder = gta5_task
    other = load_task(load_config_with(config, split_seed=3), folder)
    assert other.labelled == nested_split(task.target.names, 1, seed=3) != task.labelled
    camvid = load_task(DataConfig(target=str(street_folder), budget=1, streets=1), folder)
    assert set(camvid.labelled) < set(camvid.target.names)
    own = folder / "own"
    own.mkdir()
    (own / "labelled_1.txt").write_text(task.target.names[3])
    assert load_task(load_config_with(config, splits=str(own)), folder).labelled == task.target.names[3:4]


def test_a_folder_that_is_not_named_is_asked_for(tmp_path):
    with pytest.raises(ValueError, match="needs the folder of its target: --target FOLDER"):
        load_task(DataConfig(), tmp_path)
    gta5 = DataConfig(kind="gta5-cityscapes", target="Cityscapes")
    with pytest.raises(ValueError, match="gta5-cityscapes needs the folder of its source: --source FOLDER"):
        load_task(gta5, tmp_path)
    target = str(write_cityscapes(tmp_path / "c"))
    alone = DataConfig(kind="gta5-cityscapes", target=target, budget=1, use_source=False)
    task = load_task(alone, tmp_path)
    assert len(task.source.names) == 0
    assert list(streams(task, alone, tmp_path, 0, unlabelled=True)) == ["labelled", "unlabelled"]


def test_synthia_is_scored_on_its_classes(tmp_path):
    config = DataConfig(
        kind="synthia-cityscapes",
        source=str(write_synthia(tmp_path / "s")),
        target=str(write_cityscapes(tmp_path / "c")),
        budget=2,
    )
    task = load_task(config, tmp_path / "kept")
    assert {name: len(classes) for name, classes in task.means.items()} == {"mIoU16": 16, "mIoU13": 13}
    assert len(task.classes) == 19


def test_streets_to_camvid_needs_the_same_classes(camvid_folder, tmp_path):
    with pytest.raises(ValueError, match="expected the classes of streets"):
        load_task(DataConfig(target=str(camvid_folder), budget=0, streets=1), tmp_path)


def test_streams_of_streets_to_camvid(street_folder, tmp_path):
    config = DataConfig(target=str(street_folder), budget=1, streets=2, batch_size=2)
    task = load_task(config, tmp_path)
    assert (tmp_path / "streets-24x32-2.npz").is_file()
    batch = Steps(streams(load_task(config, tmp_path), config, tmp_path, 0, unlabelled=True), 0, 0, 1)[0]
    assert batch["source"].image.shape == batch["unlabelled"].image.shape == (2, 3, 24, 32)
    assert list(task.tests) == ["val_alt"]
    assert len(task.classes) == len(task.means["mIoU11"]) == 11


def test_configs_are_checked(tmp_path):
    (tmp_path / "base.toml").write_text(
        'loss = "CE"\n[data]\nbudget = 7\ncrop = [8, 9]\n[training]\nlr = 1\n'
    )
    (tmp_path / "top.toml").write_text('base = "base"\nloss = "WCE"\n[data]\nbatch_size = 3\n')
    config = load_config(
        tmp_path / "top.toml", ["training.seed=4", "data.crop=[]", 'data.test_splits=["val"]']
    )
    assert (config.loss, config.data.budget, config.data.batch_size, config.training.seed) == ("WCE", 7, 3, 4)
    assert config.data.crop is None
    assert config.data.test_splits == ("val",)
    assert config.training.lr == 1.0
    assert config.as_dict()["data"]["test_splits"] == ["val"]
    for override, message in {
        'loss="XE"': "loss must be one of 'CE', 'WCE'",
        "data.bugdet=1": "unknown key 'bugdet'; known here are kind, source",
        "data.budget=1.5": "data, budget must be int, got 1.5",
        "data.crop=[1]": r"data, crop must be \[height, width\], or \[\] for none",
        "training.iterations=0": "iterations must be at least 1",
        "data=3": "data. must be a table",
        "loss=CE": "must be KEY=VALUE with a TOML value",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_config(tmp_path / "top.toml", [override])
    with pytest.raises(FileNotFoundError, match="those there are"):
        load_config("nonesuch")
