"""A grid's page and plots from results whose numbers are known; the paper's numbers; where a result comes from."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("kornia")
pytest.importorskip("matplotlib")

from matplotlib import pyplot as plt

from examples.common import provenance as origin
from examples.common.config import read_toml, run_folder
from examples.common.published import read_published
from examples.common.scoring import by_rarity
from examples.semidavil.collect import all_runs
from examples.semidavil.config import load_config
from examples.semidavil.grid import GRIDS, load_grid
from examples.semidavil.plots import curves, gain, scores, write_plots
from examples.semidavil.report import PUBLISHED, report

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
        "note": "Toys.",
        "kind": "streets-camvid",
        "published": ["losses_gta5"],
        "published_classes": {},
        "compare": ["CE", "DyCE"],
        "rows": {
            "CE": {"30": ce, "100": []},
            "WCE": {"30": [], "100": []},
            "DyCE": {"30": dyce, "100": later},
        },
    }


def test_the_page_has_our_numbers_and_the_papers(results):
    text = report(results, read_published(PUBLISHED))
    assert text.startswith("# Toy\n\nToys.\n")
    # IoU 2.9 / 6 and 3.1 / 6; without the road, the most frequent of six, 2.0 / 5 and 2.2 / 5
    assert "| CE | 50.0 ± 2.4 / 42.0 ± 2.8 (2) | – |" in text
    assert "| WCE | – | – |" in text
    assert "| DyCE | 55.0 / 50.0 (1†) | 60.0 ± 0.0 / 60.0 ± 0.0 (2) |" in text
    assert "## Beside the paper: Table 6, GTA5 to Cityscapes, mIoU over 19 classes\n" in text
    assert "Ours are of another data set: the order of rows may be compared, the level not." in text
    assert (
        "|  | ours, 30 labels | ours, 100 labels | paper, 0 labels | paper, 100 labels | paper, 200 labels |"
        in text
    )
    assert "| CE | 50.0 ± 2.4 | – | 66.9 | 70.3 | 71.6* | 72.1 | 73.9 | 74.4* |" in text
    assert "| FL | – | – | 67.0 | 70.4 | 71.8 | 72.2 | 74.1 | 74.9 |" in text
    assert "| DyCE | 55.0 | 60.0 ± 0.0 | 67.7 | 71.1 | 72.5 | 72.9 | 74.8 | 75.2 |" in text
    assert "- \\* CE, 200 labels, 2975 labels: Table 1 (Ours w/o DyCE) prints 71.8 and 74.7" in text


def test_the_page_says_what_was_run(results):
    text = report(results, read_published(PUBLISHED))
    assert "Runs: 5, of 600 steps; batch 4 of each stream, pieces a step: 1; " in text
    assert (
        "(height×width): 18×24; seeds 0, 1; 2.00 hours of training in all for the 4 of them that recorded it"
        in text
    )
    assert "Device: abacus; threads: 1; processes: 2; commit: f00." in text


def test_the_page_has_every_classes_iou_the_rarest_first(results):
    text = report(results, read_published(PUBLISHED))
    head = (
        "|  | mIoU7 | pole (1 %) | traffic sign (4 %) | tree (6 %) | car (9 %) | sky (30 %) | road (50 %) |"
    )
    assert f"## IoU of each class on val, 30 labels\n\n{head}" in text
    assert (
        "| CE (2) | 50.0 ± 2.4 | 20.0 | 20.0 | 40.0 | 50.0 | 80.0 | 90.0 |\n| DyCE (1†) | 55.0 | 50.0 |"
        in text
    )
    assert "| DyCE less CE |  | +20.0 | +10.0 | +0.0 | +0.0 | +0.0 | -10.0 |" in text
    assert by_rarity(all_runs(results)[0]["scores"]["val"]["pixels"]) == [2, 5, 4, 3, 1, 0]


def test_runs_of_the_papers_data_stand_in_front_of_its_columns(results):
    own = {"kind": "gta5-cityscapes", "published_classes": {"100": "classes_gta5"}}
    text = report(results | own, read_published(PUBLISHED))
    heads = (
        "|  | ours, 30 labels | paper, 0 labels | ours, 100 labels | paper, 100 labels | paper, 200 labels |"
    )
    assert heads in text
    assert "| DyCE | 55.0 | 67.7 | 60.0 ± 0.0 | 71.1 | 72.5 | 72.9 | 74.8 | 75.2 |" in text
    assert "another data set" not in text
    assert "| paper, Ours w/ DyCE | 71.1* | 60.2 | 71.1 | – | 93.2 | 93.2 | 98.1 |" in text
    assert "- \\* Ours w/ DyCE, mIoU: its classes average 71.52" in text
    assert text.count("\n| paper, ") == 13  # the rows of Table 4, with 100 labels alone


def test_a_page_without_runs_has_the_papers_tables():
    for name, config, title in (("budgets", "gta5", "Table 4"), ("budgets", "synthia", "Figure 7")):
        grid = load_grid(name, config)
        own = {row.label: {str(budget): [] for budget in grid.budgets} for row in grid.rows}
        results = {
            "title": grid.title,
            "note": "",
            "kind": f"{config}-cityscapes",
            "published": list(grid.published),
            "published_classes": {str(n): key for n, key in grid.published_classes.items()},
            "compare": [],
            "rows": own,
        }
        text = report(results, read_published(PUBLISHED))
        assert "No run is finished." in text
        assert f"## Beside the paper: {title}" in text
        assert "| Ours w/ DyCE | – | " in text


def test_every_mean_of_a_test_set_has_its_table(results):
    for row in results["rows"].values():
        for run in (run for runs in row.values() for run in runs):
            run["scores"]["val"]["mean_iou"]["mIoU2"] = 0.25
    text = report(results, read_published(PUBLISHED))
    assert "## val, mIoU7\n" in text
    first, second = text.index("## val, mIoU7\n"), text.index("## val, mIoU2\n")
    assert first < second < text.index("| CE | 25.0 ± 0.0 / ")


def test_the_page_says_how_many_pixels_were_confident(results):
    assert "Confident pixels" not in report(results, read_published(PUBLISHED))
    for run, share in zip(results["rows"]["CE"]["30"], (0.02, 0.04), strict=True):
        run["confident"] = share
    results["rows"]["DyCE"]["30"][0]["confident"] = 0.0
    table = "| CE | 3.00 | – |\n| WCE | – | – |\n| DyCE | 0.00 | – |\n"
    assert table in report(results, read_published(PUBLISHED))


def test_the_page_says_when_pixels_were_confident(results):
    for run, last in zip(results["rows"]["CE"]["30"], (0.5, 0.7), strict=True):
        points = [[step, 0.0] for step in range(10, 81, 10)] + [[90, last], [100, last - 0.1]]
        run |= {"confident": 0.1, "curves": {"confident": points}}
    text = report(results, read_published(PUBLISHED))
    assert "|  | 0 to 20 % | 20 to 40 % | 40 to 60 % | 60 to 80 % | 80 to 100 % |" in text
    assert "| CE, 30 labels | 0.00 | 0.00 | 0.00 | 0.00 | 55.00 |\n" in text


def test_curves_are_drawn_of_runs_that_were_scored_more_than_once(results, tmp_path):
    assert curves(results, "val", "mIoU7") is None
    run = results["rows"]["DyCE"]["100"][0]
    run["curves"] = {"val": [[5, 0.25]], "confident": [[5, 0.0], [10, 0.5]]}
    assert curves(results, "val", "mIoU7") is None
    run["curves"]["val"].append([10, 0.5])
    figure = curves(results, "val", "mIoU7")
    (score,), (confident,) = (panel.lines for panel in figure.axes)
    assert (list(score.get_xdata()), list(score.get_ydata())) == ([5, 10], [25.0, 50.0])
    assert (list(confident.get_xdata()), list(confident.get_ydata())) == ([5, 10], [0.0, 50.0])
    assert score.get_label() == "DyCE, 100 labels"
    plt.close("all")
    assert "toy_curves_val.png" in write_plots(results, tmp_path, "toy")


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


def _grids():
    for path in sorted(GRIDS.glob("*.toml")):
        configs = read_toml(path)["configs"]
        yield from (load_grid(path.stem, config) for config in configs)


def test_every_published_table_stands_beside_its_rows():
    published = read_published(PUBLISHED)
    shown = set()
    for grid in _grids():
        shown |= {*grid.published, *grid.published_classes.values()}
        for key in grid.published:
            own = {row.label for row in grid.rows}
            printed = {*published[key].rows}
            assert own & printed, (grid.name, key)
            if not key.startswith(("budgets", "semivl")):  # they have other methods
                assert printed <= own, (grid.name, key)
        assert {*grid.published_classes} <= {*grid.budgets}
    assert shown == set(published)


def test_the_published_budgets_are_the_grids():
    published = read_published(PUBLISHED)
    for grid in _grids():
        kind = grid.run(grid.rows[0], grid.budgets[0], 0).data.kind
        for key in grid.published:
            if published[key].data == kind:
                assert published[key].columns == tuple(f"{budget} labels" for budget in grid.budgets)


def _number(cell: str) -> float:
    return float(cell.rstrip("*"))


def test_published_means_are_those_of_their_classes():
    """A misread cell would show, but for the means that the file itself lists as the paper's errors."""
    tables = [table for key, table in read_published(PUBLISHED).items() if key.startswith("classes")]
    marked = 0
    for name, cells in (item for table in tables for item in table.rows.items()):
        values = [_number(cell) for cell in cells if cell != "–"]
        assert len(values) in (17, 20)
        distance = abs(sum(values[:-1]) / len(values[:-1]) - values[-1])
        marked += cells[-1].endswith("*")
        assert (distance > 0.1) == cells[-1].endswith("*"), name
    assert marked == 2


def test_published_numbers_of_the_same_runs_agree_or_are_marked():
    published = read_published(PUBLISHED)
    pairs = [
        ("budgets", "Ours w/o DyCE", "losses", "CE"),
        ("budgets", "Ours w/ DyCE", "losses", "DyCE"),
        ("budgets", "Ours w/o DyCE", "components", "CT + VLP + DLG"),
        ("budgets", "Ours w/ DyCE", "components", "CT + DyCE + VLP + DLG"),
        ("budgets", "Ours w/ DyCE", "semivl", "Ours"),
        ("budgets", "Ours w/ DyCE", "guidance", "DLG"),
    ]
    compared = 0
    for source in ("gta5", "synthia"):
        for first, row, second, other in pairs:
            one, two = published[f"{first}_{source}"], published[f"{second}_{source}"]
            for column in two.columns:
                cells = one.cell(row, column), two.cell(other, column)
                if "?" not in cells:
                    compared += 1
                    agree = _number(cells[0]) == _number(cells[1])
                    assert agree or all(cell.endswith("*") for cell in cells), (source, second, column)
    assert compared == 50


def test_grids_that_are_wrong_are_refused(tmp_path):
    path = tmp_path / "bad.toml"
    start = 'title = "x"\nconfigs = ["smoke"]\nbudgets = [1]\nseeds = [0]\n'
    rows = '[[row]]\nlabel = "a"\nset = []\n[[row]]\nlabel = "b"\nset = []\n'
    path.write_text(f'{start}compare = ["a", "c"]\n{rows}')
    with pytest.raises(ValueError, match="compare must be the labels of two rows"):
        load_grid(str(path))
    path.write_text(start)
    with pytest.raises(ValueError, match="lacks the key 'row'"):
        load_grid(str(path))
    with pytest.raises(ValueError, match="components needs --config, one of gta5, synthia; got None"):
        load_grid("components")
    with pytest.raises(ValueError, match="got 'camvid'"):
        load_grid("components", "camvid")


def test_runs_of_the_published_tables_are_those_of_train():
    """A table can be made run by run, and what two tables share is one run."""
    for name, row, overrides in (
        ("components", 4, ["data.budget=200"]),
        ("losses", 1, ["data.budget=200", 'loss="WCE"']),
        ("budgets", 0, ["data.budget=200", "components.dyce=false"]),
    ):
        grid = load_grid(name, "synthia")
        folder = grid.folder(Path("runs"), grid.rows[row], 200, 0)
        content = load_config("synthia", overrides).as_dict()
        assert folder == run_folder(Path("runs"), "synthia", content)
    same = {
        grid.folder(Path("runs"), row, 200, 0)
        for grid in (load_grid(name, "gta5") for name in ("budgets", "components", "losses"))
        for row in grid.rows
        if row.label in ("Ours w/o DyCE", "CT + VLP + DLG", "CE")
    }
    assert len(same) == 1


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
