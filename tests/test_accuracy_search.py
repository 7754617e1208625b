"""The search for each loss's own learning rate: on held-out training images alone, and before any final run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="the plots need the extra [plot]")

from benchmarks.accuracy import __main__ as command_line
from benchmarks.accuracy.collect import known_scores, read_results
from benchmarks.accuracy.data import load_data, spoilt
from benchmarks.accuracy.grid import Grid, load_grid
from benchmarks.accuracy.run import METRICS, write_json
from benchmarks.accuracy.search import main_score, rate_grids, tuned, tuning_runs, with_own_rates
from examples.common.stored import StoredImages
from tests.examples.conftest import camvid_folder  # noqa: F401 (a fixture)
from tests.test_accuracy_benchmark import TINY

RESULTS = Path(__file__).parents[1] / "benchmarks/results/cracks"

SEARCH = """
[search]
max_lr = [1e-3, 2e-3]
seed = 7
held_out = 2
"""


@pytest.fixture
def grid(tmp_path: Path, camvid_folder: Path) -> Grid:  # noqa: F811
    path = tmp_path / "searched.toml"
    path.write_text(TINY.split('[[loss]]\nlabel = "GBW"')[0] + SEARCH)
    return command_line.for_folder(load_grid(path), camvid_folder)


def score(grid: Grid, runs: Path, rate: str, label: str, mean_iou: float) -> None:
    """Finish a run of the search with a made-up score."""
    (config,) = (config for of, config in rate_grids(grid)[rate].runs() if of == label)
    entry = {"iou": [mean_iou] * 11, "mean_iou": mean_iou}
    write_json(runs / config.folder_name / METRICS, {"scores": {"held out": entry}})


def test_the_best_rate_is_the_loss_s_own(grid: Grid, tmp_path: Path) -> None:
    for rate, label, found in [
        ("0.001", "CE", 0.2),
        ("0.002", "CE", 0.3),
        ("0.001", "WCE", 0.5),
        ("0.002", "WCE", 0.4),
    ]:
        score(grid, tmp_path, rate, label, found)
    own = with_own_rates(grid, tmp_path)
    rates = {(label, config.seed): config.training["max_lr"] for label, config in own.runs()}
    assert rates == {("CE", 0): 2e-3, ("WCE", 0): 1e-3, ("CE", 1): 2e-3, ("WCE", 1): 1e-3}
    assert own.rate_scores["CE"] == {"0.001": 20.0, "0.002": 30.0}


def test_no_final_run_before_its_search_is_finished(grid: Grid, tmp_path: Path) -> None:
    score(grid, tmp_path, "0.001", "CE", 0.2)
    score(grid, tmp_path, "0.002", "CE", 0.3)
    score(grid, tmp_path, "0.001", "WCE", 0.5)
    assert {label for label, _ in with_own_rates(grid, tmp_path).runs()} == {"CE"}
    known = {"WCE": {"0.002": 60.0}}  # of another machine
    assert {label for label, _ in with_own_rates(grid, tmp_path, known).runs()} == {"CE", "WCE"}


def test_the_best_setting_is_the_loss_s_own(grid: Grid, tmp_path: Path) -> None:
    """At the best of its rates; of a loss without settings nothing changes."""
    own = replace(
        with_own_rates(grid, tmp_path, {label: {"0.001": 20.0, "0.002": 30.0} for label in grid.labels}),
        tune={"WCE": [{"label_smoothing": 0.1}, {"weight_kwargs": {"power": 0.5}}]},
    )
    runs = tuning_runs(own)
    assert [(label, name) for label, name, _ in runs] == [
        ("WCE", "label_smoothing = 0.1"),
        ("WCE", "power = 0.5"),
    ]
    for (_, _, config), score_of in zip(runs, (0.25, 0.35), strict=True):
        assert (config.seed, config.training["max_lr"], config.data["held_out"]) == (7, 2e-3, 2)
        assert tuned(own, tmp_path).labels == ("CE",)  # not all of its settings are finished
        write_json(
            tmp_path / config.folder_name / METRICS,
            {"scores": {"held out": {"iou": [score_of] * 11, "mean_iou": score_of}}},
        )
    found = tuned(own, tmp_path)
    losses = dict(zip(found.labels, found.losses, strict=True))
    assert losses["CE"] == own.losses[0]
    assert losses["WCE"]["kwargs"] == {"weight": "pixel_frequency", "weight_kwargs": {"power": 0.5}}
    assert found.setting_scores == {
        "WCE": {"as it is": 30.0, "label_smoothing = 0.1": 25.0, "power = 0.5": 35.0}
    }
    known = {"WCE": {"label_smoothing = 0.1": 25.0, "power = 0.5": 28.0}}  # of another machine
    assert not tuning_runs(own, known)
    assert tuned(own, tmp_path / "none", known).losses == own.losses


def test_the_search_sees_no_test_image(grid: Grid, tmp_path: Path, camvid_folder: Path) -> None:  # noqa: F811
    searched = rate_grids(grid)["0.001"]
    (config,) = {config.key: config for label, config in searched.runs() if label == "CE"}.values()
    assert (config.seed, config.training["max_lr"], config.training["eval_every"]) == (7, 1e-3, 0)
    whole, part = (load_data(data, camvid_folder, tmp_path) for data in (grid.data, config.data))
    (test,) = part.tests.values()
    assert len(part.train) + len(test) == len(whole.train)
    joined = torch.stack([image for pair in zip(part.train.images, test.images) for image in pair])  # noqa: B905
    assert torch.equal(joined, whole.train.images[: len(joined)])


def test_known_scores_are_not_searched_again(grid: Grid) -> None:
    searched = rate_grids(grid, {"WCE": {"0.002": 60.0}})
    assert {rate: of.labels for rate, of in searched.items()} == {"0.001": ("CE", "WCE"), "0.002": ("CE",)}


def test_grids_of_other_labels_and_lengths_share_the_search(grid: Grid) -> None:
    def keys(of: Grid) -> set[str]:
        return {config.key for searched in rate_grids(of).values() for _, config in searched.runs()}

    noisy = replace(grid, data=grid.data | {"label_noise": 0.5})
    long = replace(grid, training=grid.training | {"iterations": 1000, "eval_every": 7})
    assert keys(noisy) == keys(long) == keys(grid)
    assert not {config.key for _, config in noisy.runs()} & {config.key for _, config in grid.runs()}


@pytest.mark.parametrize("name", ["tuned", "noise5", "noise20", "long"])
def test_the_cracks_grids_share_the_search(name: str) -> None:
    grid, origin = load_grid(f"study_cracks_{name}"), load_grid("study_cracks")

    def keys(of: Grid) -> set[str]:
        return {config.key for searched in rate_grids(of).values() for _, config in searched.runs()}

    assert keys(grid) < keys(origin)
    rates, _ = known_scores(grid, RESULTS)
    assert rates == known_scores(origin, RESULTS)[0]
    assert not any(searched.labels for searched in rate_grids(grid, rates).values())


@pytest.mark.parametrize("classes", [2, 9])
def test_spoilt_labels_are_rare_ones(classes: int) -> None:
    torch.manual_seed(0)
    labels = torch.randint(classes, (4, 60, 60), dtype=torch.uint8)
    labels[:, 0] = 255
    counts = torch.bincount(labels[labels < classes].long(), minlength=classes)
    data = StoredImages(torch.zeros(4, 3, 60, 60, dtype=torch.uint8), labels)
    found = spoilt(data, 0.2, counts).labels
    rare = counts.argsort()[: min(5, classes - 1)]
    is_rare = torch.isin(labels, rare)
    assert ((found != labels)[is_rare]).float().mean() == pytest.approx(0.2, abs=0.02)
    assert torch.equal(found[~is_rare], labels[~is_rare])
    assert found[labels < classes].max() == classes - 1
    assert torch.equal(spoilt(data, 0.2, counts).labels, found)


def test_a_search_by_the_command_line(tmp_path: Path, camvid_folder: Path) -> None:  # noqa: F811
    path, runs, out = tmp_path / "searched.toml", tmp_path / "runs", tmp_path / "out"
    path.write_text(TINY.split('[[loss]]\nlabel = "WCE"')[0] + SEARCH)
    shared = [str(path), "--data", str(camvid_folder), "--seeds", "0"]
    assert command_line.main(["run", *shared, "--runs", str(runs)]) == 0
    assert len(list(runs.glob(f"*/{METRICS}"))) == 2 + 1  # a run for each rate, and the final one
    assert command_line.main(["report", *shared, "--runs", str(runs), "--out", str(out)]) == 0
    rates = read_results(out / "searched.json").rate_scores
    assert list(rates["CE"]) == ["0.001", "0.002"]
    written = (out / "README.md").read_text()
    page = re.sub(" +", " ", written)
    assert "a rate of its own for each loss" in page
    assert "| loss | 0.001 | 0.002 |" in page
    # The file alone, without the runs, leads to the same page.
    assert command_line.main(["report", *shared, "--runs", str(tmp_path / "none"), "--out", str(out)]) == 0
    assert (out / "README.md").read_text() == written


def test_two_classes_are_judged_by_the_second() -> None:
    assert main_score({"iou": [0.9, 0.25], "mean_iou": 0.6}) == 25
    assert main_score({"iou": [0.9, None], "mean_iou": 0.9}) == 0
    assert main_score({"iou": [0.9, 0.3, 0.6], "mean_iou": 0.6}) == 60
