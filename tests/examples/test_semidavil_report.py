"""A grid's page and plots from results whose numbers are known; the paper's numbers; where a result comes from."""

from __future__ import annotations

import re
import subprocess
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("kornia")
pytest.importorskip("matplotlib")

from matplotlib import pyplot as plt

from examples.common import provenance as origin
from examples.common.config import run_folder
from examples.common.scoring import by_rarity
from examples.semidavil.collect import all_runs
from examples.semidavil.config import CONFIGS, load_config
from examples.semidavil.grid import GRIDS, load_grid
from examples.semidavil.plots import gain, scores, write_plots
from examples.semidavil.published import NOT_AT_HAND, read_published
from examples.semidavil.report import report

CLASSES = ["road", "sky", "pole", "car", "tree", "traffic_sign", "nothing"]
PIXELS = [500, 300, 10, 90, 60, 40, 0]


def _run(seed: int, iou: list[float], budget: int, **extra: Any) -> dict[str, Any]:
    entry = {
        "mean_iou": {"mIoU7": sum(iou) / 6},
        "iou": [*iou, None],
        "pixels": PIXELS,
        "pixel_accuracy": 0.5,
    }
    recipe = {"steps": 600, "batch_size": 4, "accumulation": 1}
    return {
        "seed": seed,
        "recipe": recipe,
        "labelled": budget,
        "classes": CLASSES,
        "scores": {"val": entry},
    } | extra


@pytest.fixture
def results() -> dict[str, Any]:
    """CE with two seeds and DyCE with one of 30 labels; 100 labels have DyCE alone; WCE is not run."""
    cost = {
        "seconds": 1800.0,
        "device": "abacus",
        "threads": 1,
        "ranks": 2,
        "commit": "f00",
        "image_size": [18, 24],
    }
    ce = [_run(0, [0.9, 0.8, 0.1, 0.5, 0.4, 0.2], 30, **cost), _run(1, [0.9, 0.8, 0.3, 0.5, 0.4, 0.2], 30)]
    dyce = [_run(1, [0.8, 0.8, 0.5, 0.5, 0.4, 0.3], 30, **cost)]
    later = [_run(0, [0.6] * 6, 100, **cost), _run(1, [0.6] * 6, 100, **cost)]
    return {
        "title": "Toy",
        "paper": "Table 6",
        "kind": "streets-camvid",
        "paper_rows": {"CE": "Table 6, CE", "DyCE": "Table 6, DyCE"},
        "compare": ["CE", "DyCE"],
        "rows": {
            "CE": {"30": ce, "100": []},
            "WCE": {"30": [], "100": []},
            "DyCE": {"30": dyce, "100": later},
        },
    }


def test_the_page_has_our_numbers_and_the_papers(results):
    text = report(results, read_published())
    heads = "|  | 30 labels | 100 labels | paper, another data set: 200 labels | paper, another data set: 2975 labels |"
    assert heads in text
    # IoU 2.9 / 6 and 3.1 / 6; without the road, the most frequent of six, 2.0 / 5 and 2.2 / 5
    assert "| CE | 50.0 ± 2.4 / 42.0 ± 2.8 (2) | – | 71.6 | 74.4 |" in text
    assert f"| WCE | – | – | {NOT_AT_HAND} | {NOT_AT_HAND} |" in text
    dyce = f"| DyCE | 55.0 / 50.0 (1†) | 60.0 ± 0.0 / 60.0 ± 0.0 (2) | {NOT_AT_HAND} | {NOT_AT_HAND} |"
    assert dyce in text
    assert "GTA5 to Cityscapes, 19 classes: another data set, not comparable in level" in text
    assert "Table 1 prints 71.8 and 74.7" in text
    assert "the printed IoUs average 71.52. The table prints 71.1 as their mean, the text says 71.4." in text


def test_the_page_says_what_was_run(results):
    text = report(results, read_published())
    assert "Runs: 5, of 600 steps; batch 4 of each stream, pieces a step: 1; " in text
    assert (
        "(height×width): 18×24; seeds 0, 1; 2.00 hours of training in all for the 4 of them that recorded it"
        in text
    )
    assert "Device: abacus; threads: 1; processes: 2; commit: f00." in text


def test_the_page_has_every_classes_iou_the_rarest_first(results):
    text = report(results, read_published())
    head = "|  | pole (1 %) | traffic sign (4 %) | tree (6 %) | car (9 %) | sky (30 %) | road (50 %) |"
    assert f"## IoU of each class on val, 30 labels\n\n{head}" in text
    assert "| CE (2) | 20.0 | 20.0 | 40.0 | 50.0 | 80.0 | 90.0 |\n| DyCE (1†) | 50.0 |" in text
    assert by_rarity(all_runs(results)[0]["scores"]["val"]["pixels"]) == [2, 5, 4, 3, 1, 0]


def test_runs_of_the_papers_data_are_not_marked_as_another(results):
    text = report(results | {"kind": "gta5-cityscapes"}, read_published())
    assert "|  | 30 labels | 100 labels | paper: 200 labels | paper: 2975 labels |" in text
    assert "The paper's columns (Table 6) are GTA5 to Cityscapes, 19 classes. " in text
    assert "another data set" not in text


def test_every_mean_of_a_test_set_has_its_table(results):
    for row in results["rows"].values():
        for run in (run for runs in row.values() for run in runs):
            run["scores"]["val"]["mean_iou"]["mIoU2"] = 0.25
    text = report(results, read_published())
    assert "## val, mIoU7\n" in text
    first, second = text.index("## val, mIoU7\n"), text.index("## val, mIoU2\n")
    assert first < second < text.index("| CE | 25.0 ± 0.0 / ")


def test_the_page_says_how_many_pixels_were_confident(results):
    assert "Confident pixels" not in report(results, read_published())
    for run, share in zip(results["rows"]["CE"]["30"], (0.02, 0.04), strict=True):
        run["confident"] = share
    results["rows"]["DyCE"]["30"][0]["confident"] = 0.0
    table = "| CE | 3.00 | – |\n| WCE | – | – |\n| DyCE | 0.00 | – |\n"
    assert table in report(results, read_published())


def test_a_grid_of_which_the_paper_has_no_number_says_so(results):
    results |= {"paper": "Figure 5", "paper_rows": {}}
    text = report(results, read_published())
    assert "The paper's numbers (Figure 5) are not at hand." in text
    assert "another data set:" not in text


def test_a_run_for_all_budgets_counts_once(results):
    source_only = [_run(0, [0.5] * 6, 0)]
    results["rows"] = {"source": {"30": source_only, "100": source_only}}
    assert len(all_runs(results)) == 1


def test_plots_show_every_seed(results, tmp_path):
    figure = scores(results, "val", "mIoU7")
    dots = [line.get_xdata().tolist() for line in figure.axes[0].lines]
    assert [pytest.approx(x) for x in dots] == [[100 * 2.9 / 6, 100 * 3.1 / 6], [55.0], [60.0, 60.0]]
    figure = gain(results, "val")
    seed, middle, zero = figure.axes[0].lines
    assert seed.get_ydata() == pytest.approx([20, 10, 0, 0, 0, -10])  # seed 1 alone has both
    assert figure.axes[0].get_xticklabels()[0].get_text() == "pole 1 %"
    assert middle.get_label() == "30 labels, 1 seed"
    assert zero.get_ydata() == [0, 0]
    plt.close("all")
    written = write_plots(results, tmp_path, "toy")
    assert list(written) == ["toy_scores_val.png", "toy_gain_val.png"]
    first = (tmp_path / "toy_gain_val.png").read_bytes()
    write_plots(results, tmp_path, "toy")
    assert (tmp_path / "toy_gain_val.png").read_bytes() == first
    assert list(write_plots(results | {"compare": []}, tmp_path, "toy")) == ["toy_scores_val.png"]
    assert plt.get_fignums() == []


def test_published_numbers_are_for_rows_that_a_grid_names():
    published = read_published()
    named = {row.paper for path in GRIDS.glob("*.toml") for row in load_grid(path.stem).rows}
    assert set(published.numbers) <= named
    for path in GRIDS.glob("*.toml"):
        assert load_grid(path.stem).paper


def test_grids_and_published_numbers_are_checked(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text(
        'title = "x"\nconfig = "smoke"\nbudgets = [1]\nseeds = [0]\ncompare = ["a", "c"]\n'
        '[[row]]\nlabel = "a"\n[[row]]\nlabel = "b"\n'
    )
    with pytest.raises(ValueError, match="compare must be the labels of two rows"):
        load_grid(str(path))
    path.write_text(
        'kind = ""\nsetting = ""\n'
        'average = []\n[[number]]\ntable = "T"\nrow = "r"\nlabels = [1]\nmean_iou = []\nnote = ""\n'
    )
    with pytest.raises(ValueError, match="T, r must have as many mean_iou as labels"):
        read_published(path)


def test_the_published_tables_are_grids_of_the_shipped_configurations():
    """Their runs lie where `examples.semidavil.train CONFIG` puts them, so that a table can be made run by run."""
    for name in ("table1", "synthia_budgets", "table3", "table6"):
        found = load_grid(name)
        for row, budget in product(found.rows, found.budgets):
            config = load_config(row.config.format(budget=budget))
            assert config.data.budget == budget
            folder = run_folder(Path("runs"), row.config.format(budget=budget), config.as_dict())
            assert (row.folder(Path("runs"), budget, 0) == folder) == (not row.overrides)


def test_table_3_has_every_combination():
    configs = [load_config(path) for path in CONFIGS.glob("table3_*.toml")]
    parts = {tuple(vars(config.components).values()) for config in configs}
    assert parts == set(product((False, True), repeat=4))
    assert len(configs) == 16
    assert {config.data.kind for config in configs} == {"gta5-cityscapes"}


def test_the_commit_is_the_environment_s_or_git_s_or_unknown(monkeypatch):
    monkeypatch.setenv("CLASSBALANCE_COMMIT", "0123456789ab")
    assert origin.commit() == "0123456789ab"
    monkeypatch.delenv("CLASSBALANCE_COMMIT")
    assert re.fullmatch(r"unknown|[0-9a-f]{12}(\+changes)?", origin.commit())

    def missing(*args: Any, **options: Any) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert origin.commit() == "unknown"


def test_a_stopwatch_leaves_pauses_out(monkeypatch):
    now = iter([0.0, 2.0, 12.0, 13.0])
    monkeypatch.setattr(origin.time, "perf_counter", lambda: next(now))
    watch = origin.Stopwatch(torch.device("cpu"), 10.0)
    assert watch.seconds() == 12.0
    watch.go_on()
    assert watch.seconds() == 13.0


def test_provenance_is_plain_data():
    found = origin.provenance(torch.device("cpu"), 1.23456, 2)
    assert (found["seconds"], found["ranks"], found["threads"]) == (1.2, 2, torch.get_num_threads())
    assert found["device"]
    assert found["versions"]["torch"] == torch.__version__
    assert found["peak_memory_mib"] > 10
