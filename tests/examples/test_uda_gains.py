"""What GBW gains class by class: recall, confusions and the spread of its weights, by hand on made-up runs."""

from __future__ import annotations

import json
import math

import pytest
import torch
from matplotlib import pyplot as plt

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from examples.uda_gbw.gain_plots import recall_and_confusion, spread_against_gain
from examples.uda_gbw.gains import comparisons
from examples.uda_gbw.grid import GRIDS, load_grid
from examples.uda_gbw.scores import entry_of

CLASSES = ["road", "car", "train", "lion"]
# Rows are labels. The source has no train, the test set no lion.
BEFORE = [[80, 20, 0, 0], [5, 5, 0, 0], [20, 0, 0, 0], [0, 0, 0, 0]]
AFTER = [[70, 30, 0, 0], [1, 9, 0, 0], [0, 0, 20, 0], [0, 0, 0, 0]]


def _run(seed, confusion, weights):
    return {
        "seed": seed,
        "classes": CLASSES,
        "source_pixels": [50, 40, 0, 10],
        "scores": {"val": entry_of(torch.tensor(confusion), {"mIoU2": (0, 1)})},
        "class_weights": {"source": {"steps": [1, 2], "weights": weights}},
    }


def _results(compare):
    ones, moved = [[1.0] * 4] * 2, [[0.8, 1.0, 1.0, 1.2], [1.0, 1.4, 1.0, 0.6]]
    before = [_run(0, BEFORE, ones), _run(1, AFTER, ones), _run(2, BEFORE, ones)]
    after = [_run(1, AFTER, moved), _run(0, AFTER, moved)]
    rows = {"none": {"A": before, "B": after}, "all": {"A": [], "B": before}}
    return {"compare": compare, "rows": rows}


def test_scores_have_recall_and_the_matrix():
    entry = entry_of(torch.tensor(BEFORE), {"first": (0, 1), "all": (0, 1, 2, 3)})
    assert entry["recall"] == [0.8, 0.5, 0.0, None]
    assert entry["mean_recall"] == pytest.approx({"first": 0.65, "all": 1.3 / 3})
    assert entry["confusion"] == BEFORE
    assert entry["iou"][:2] == pytest.approx([80 / 125, 5 / 30])
    assert json.loads(json.dumps(entry)) == entry
    assert math.isnan(entry_of(torch.tensor(BEFORE), {"none": (3,)})["mean_recall"]["none"])


def test_gains_are_means_over_the_seeds_of_both_sides():
    (found,) = comparisons(_results([["A", "B"]]))
    assert found.title == "none: B against A"
    assert [(one["seed"], other["seed"]) for one, other in found.pairs] == [(0, 0), (1, 1)]
    assert found.order("val") == [1, 0]  # the rarer first; the source has no train, the test set no lion
    assert found.gains("val", "recall") == pytest.approx({1: (0.9 - 0.5) / 2, 0: (0.7 - 0.8) / 2})
    iou = [[80 / 125, 5 / 30], [70 / 101, 9 / 40]]
    assert found.gains("val", "iou") == pytest.approx({c: (iou[1][c] - iou[0][c]) / 2 for c in (0, 1)})
    assert found.confusion("val") == [pytest.approx([0.2, -0.2]), pytest.approx([0.05, -0.05])]
    assert found.spreads()["source"] == pytest.approx([0.1, 0.2, 0.0, 0.3])


def test_rows_are_compared_in_every_variant():
    assert [one.title for one in comparisons(_results([["none", "all"]]))] == ["B: all against none"]
    titles = [one.title for one in comparisons(_results([["A", "B"], ["all", "none"]]))]
    assert titles == ["none: B against A", "B: none against all"]


def test_the_pictures_show_those_numbers():
    (found,) = comparisons(_results([["A", "B"]]))
    figure = recall_and_confusion(found, "val")
    bars, matrix = figure.axes
    assert [label.get_text() for label in bars.get_yticklabels()] == ["car", "road"]
    widths = [patch.get_width() for patch in bars.patches]
    assert widths == pytest.approx([70, 75, 90, 70])  # without, then with
    # Green is better: more of a class on the diagonal, less of it beside.
    assert matrix.images[0].get_array().tolist() == [pytest.approx([20, 20]), pytest.approx([-5, -5])]
    assert [text.get_text() for text in matrix.texts] == ["+20.0", "-20.0", "+5.0", "-5.0"]
    spread = spread_against_gain(found, "val")
    points = {tuple(line.get_xydata()[0]) for line in spread.axes[0].lines if len(line.get_xydata()) == 1}
    gains = found.gains("val", "iou")
    wanted = {(found.spreads()["source"][c], 100 * gains[c]) for c in gains}
    assert points == wanted
    plt.close("all")


def test_every_table_with_and_without_gbw_is_compared():
    compared = {path.stem for path in GRIDS.glob("*.toml") if load_grid(path.stem).compare}
    assert compared == {path.stem for path in GRIDS.glob("*.toml")} - {"readings"}
    five = load_grid("gta5_table5")
    assert [after for _, after in five.compare] == ["λ = 0.1", "λ = 0.5", "λ = 1", "λ = 2"]  # Figure 4b's
