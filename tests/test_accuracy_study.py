"""What a study says beyond scores, from result files that the tests make up."""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import ttest_rel

pytest.importorskip("matplotlib", reason="the plots need the extra [plot]")

from benchmarks.accuracy.collect import GridResults, Result
from benchmarks.accuracy.study import (
    has_quality,
    paired_difference,
    reliability_diagram,
    study_table,
    verdict,
)
from benchmarks.accuracy.summary import gain_against_share, summary_table, write_summary
from examples.common.figures import save_figure

RESULTS = Path(__file__).parents[1] / "benchmarks/results/camvid-small"

SCORES = {"BCE": [0.30, 0.32, 0.31, 0.35], "DyCE": [0.45, 0.46, 0.44, 0.48], "odd": [0.5]}


def run(label: str, seed: int, iou: float) -> Result:
    """Probabilities of 0.25 of which a fifth is right, a boundary half found, and a curve that ends at ``iou``."""
    entry = {"mean_iou": iou, "iou": [0.9, iou], "precision": [0.9, iou], "recall": [0.9, iou]}
    log = tuple({"step": step, **entry, "iou": [0.9, iou * step / 100]} for step in (50, 75, 100))
    bins = [[0, 0.0, 0] for _ in range(15)]
    bins[3] = [100, 25.0, 20]
    quality = {"reliability": [bins], "boundary": [[1, 1, 1, 1], [10, 5, 20, 10]]}
    return Result(label, {}, seed, {"val": entry}, log, {"type": "cpu"}, quality)


@pytest.fixture
def results() -> GridResults:
    runs = tuple(run(label, seed, iou) for label, of in SCORES.items() for seed, iou in enumerate(of))
    recipe = {"training": {"iterations": 100}}
    return GridResults("made_up", "Made up", recipe, ("no", "yes"), (0.9, 0.1), runs, {}, {})


def test_the_interval_is_that_of_a_paired_t_test(results: GridResults) -> None:
    found = ttest_rel([100 * v for v in SCORES["DyCE"]], [100 * v for v in SCORES["BCE"]])
    interval = found.confidence_interval(0.95)
    middle, half = paired_difference(results, "DyCE", "BCE")
    assert (middle - half, middle + half) == pytest.approx((interval.low, interval.high))
    assert verdict(middle, half) == "wins"
    assert verdict(-middle, half) == "loses"
    assert verdict(half / 2, half) == "tie"


def test_of_one_seed_there_is_no_interval(results: GridResults) -> None:
    middle, half = paired_difference(results, "odd", "BCE")
    assert middle == pytest.approx(20)
    assert math.isnan(half)
    assert verdict(middle, half) == "tie"


def test_the_table_says_what_the_runs_say(results: GridResults, tmp_path: Path) -> None:
    assert has_quality(results)
    rows = {
        row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:-1]]
        for row in study_table(results).splitlines()
    }
    assert rows["BCE"] == ["", "", "5.00 %", "1.25", "50.0", "–"]  # half of its seeds are below their mean
    # BCE's mean is 32.0: of DyCE 75 steps are enough, 0.75 · 0.44 = 33 being the least.
    assert rows["DyCE"][1:] == ["wins", "5.00 %", "1.25", "50.0", "75"]
    save_figure(reliability_diagram(results), tmp_path / "diagram.png")


def test_the_summary_says_who_wins(results: GridResults, tmp_path: Path) -> None:
    """Of one grid by hand: DyCE is 13.75 points ahead, of pairs whose differences deviate by 0.96."""
    other = replace(results, name="other", runs=tuple(run("CE", seed, 0.5) for seed in range(3)))
    lines = summary_table([results, other]).splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == ["loss", "`made_up`", "`other`"]
    rows = {
        cells[0]: cells[1:] for cells in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    }
    assert rows["DyCE"] == ["**+13.8 ± 1.5**", ""]
    assert rows["odd"] == ["+20.0", ""]
    assert "CE" not in rows
    save_figure(gain_against_share([results]), tmp_path / "gain.png")


def test_the_summary_s_page_links_to_the_results(tmp_path: Path) -> None:
    out = RESULTS.parent / "study"
    folder = tmp_path / "results"
    shutil.copytree(RESULTS, folder / RESULTS.name)
    path = folder / RESULTS.name / "compare.json"
    page = write_summary([path], folder / out.name).read_text()
    (link,) = re.findall(r"\]\((\.\./.*?)\)", page)
    assert (folder / out.name / link).is_file()
    assert "11 classes, the rarest bicyclist with 0.34 % of the pixels; 300 steps" in page
