"""Sliding windows, scores, pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from semidavil_files import write_cityscapes, write_gta5

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from semidavil_toy import engine as _engine
from semidavil_toy import toy_config

from examples.common.scenes.task import load_task
from examples.common.scoring import scores_table, sliding_window
from examples.common.streets import CLASSES as STREET_CLASSES
from examples.semidavil.config import Config
from examples.semidavil.engine import Engine
from examples.semidavil.evaluation import evaluate, predict
from examples.semidavil.pictures import painted, write_pictures
from examples.semidavil.train import train


@pytest.fixture
def config(street_folder) -> Config:
    """The smoke configuration on the toy target."""
    return toy_config(street_folder)


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
    assert scores_table(entry, task.classes, [3, 4]).startswith("| mIoU2 | road | pavement |\n")


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
    engine = Engine(replace(config, data=data), task, torch.device("cpu"), tmp_path / "kept")
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
