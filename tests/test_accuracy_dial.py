"""Streets of which fewer and fewer have a class, and what losses gain on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="the plots need the extra [plot]")

from benchmarks.accuracy.collect import GridResults, Result
from benchmarks.accuracy.data import diluted, load_data
from benchmarks.accuracy.dial import dial_plot, dial_section, dial_table, dials
from examples.common.figures import save_figure
from examples.common.stored import StoredImages
from examples.common.streets import Streets

NAMES = ("road", "car", "bike")


def grid(images: int, share: float, iou: dict[str, list[float]]) -> GridResults:
    """Results whose class 2 has a share and, by loss and seed, an IoU."""
    entries = {
        label: [{"test": {"iou": [0.9, 0.5, value], "mean_iou": 0.5}} for value in of]
        for label, of in iou.items()
    }
    runs = tuple(
        Result(label, {}, seed, scores, (), {"type": "cpu"}, {})
        for label, of in entries.items()
        for seed, scores in enumerate(of)
    )
    recipe = {"data": {"dilute": {"class": "bike", "images": images}}}
    return GridResults("made_up", "Made up", recipe, NAMES, (0.6, 0.4 - share, share), runs, {}, {})


def test_so_many_images_have_the_class() -> None:
    labels = torch.zeros(10, 4, 4, dtype=torch.uint8)
    labels[1::2, 0, 0] = 2
    images = torch.arange(10).view(10, 1, 1, 1).expand(10, 3, 4, 4)
    few = diluted(StoredImages(images, labels), 2, 1, 4)
    assert few.images[:, 0, 0, 0].tolist() == [0, 1, 2, 4]
    for number, length in ((6, 8), (0, 6)):
        with pytest.raises(ValueError, match="10 images are too few: 5 have class 2"):
            diluted(StoredImages(images, labels), 2, number, length)


def test_the_dial_changes_training_alone(tmp_path: Path) -> None:
    config = {"kind": "streets", "size": [32, 48], "train": 4, "test": 2}
    of = Streets.classes.index("bicyclist")
    shares, tests = [], []
    for images in (3, 1):
        dial = {"class": "bicyclist", "images": images, "pool": 12}
        data = load_data(config | {"dilute": dial}, None, tmp_path)
        assert int((data.train.labels == of).flatten(1).any(1).sum()) == images
        assert len(data.train) == 4
        shares.append(data.pixel_counts[of] / data.pixel_counts.sum())
        tests.append(data.tests["test"].labels)
    assert shares[0] > shares[1] > 0
    assert torch.equal(*tests)


def test_the_table_and_the_plot_go_from_the_largest_share_down(tmp_path: Path) -> None:
    less = grid(2, 0.001, {"CE": [0.0, 0.02], "DyCE": [0.1, 0.1]})
    more = grid(20, 0.01, {"CE": [0.3, 0.3], "DyCE": [0.4, 0.42]})
    ordinary = replace(more, recipe={"data": {}})
    found = dials([less, ordinary, more])
    assert found == [more, less]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in dial_table(found).splitlines()]
    assert rows[0] == ["loss", "1 %, 20 images", "0.1 %, 2 images"]
    assert rows[2] == ["CE", "30.0", "1.0"]
    # Differences of 10 and 12, and of 10 and 8, whose standard error is 1: times 12.7 of one degree of freedom.
    assert rows[3] == ["DyCE", "+11.0 ± 12.7", "+9.0 ± 12.7"]
    assert dial_section(found)[0] == "## The dial: bike from 1 % down to 0.1 %"
    save_figure(dial_plot(found), tmp_path / "dial.png")
