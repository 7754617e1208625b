"""Grids of synapse_ssl, their tables and plots, and Table 5 as it is printed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

pytest.importorskip("monai")

from examples.__main__ import main
from examples.common.config import run_folder
from examples.common.outcome import METRICS
from examples.synapse_ssl.config import load_config
from examples.synapse_ssl.data.btcv import CLASSES
from examples.synapse_ssl.grid import GRIDS, collect, load_grid
from examples.synapse_ssl.methods import METHODS
from examples.synapse_ssl.plots import bars, gain_against_frequency
from examples.synapse_ssl.published import Scores, read_published
from examples.synapse_ssl.report import report
from examples.synapse_ssl.rows import Setting

RESULTS = Path(__file__).parents[2] / "benchmarks/results/synapse_ssl"
TINY = """title = "Tiny grid"
config = "{config}"
budgets = [0.5]
seeds = [0, 1]
methods = ["supervised", "ua_mt"]
pixels = ["CE", "DyCE"]
bound = ["data.budget=1.0"]
"""
CONFIG = """note = "{note}"
[data]
kind = "organs"
size = [8, 16, 16]
patch = [8, 16, 16]
cases = [4, 1, 1]
batch_size = 1
[model]
network = "dyn_unet"
features = [4, 8, 8]
[training]
epochs = 1
steps_per_epoch = 1
validate_every = 0
"""


@pytest.fixture
def tiny(tmp_path) -> str:
    """The path of a grid of one-step runs."""
    config, path = tmp_path / "tiny.toml", tmp_path / "grid.toml"
    config.write_text(CONFIG.format(note="Tiny."))
    path.write_text(TINY.format(config=config))
    return str(path)


def entry(method: str, pixel: str, seed: int, dice: list[float], **others: Any) -> dict[str, Any]:
    """A finished run of a grid; recall is Dice + 1, or absent for `recall=False`; distances are Dice / 10."""
    scores: dict[str, Any] = {"dsc": mean(dice), "dsc_per_class": dice}
    scores |= {"asd": mean(dice) / 10, "asd_per_class": [value / 10 for value in dice]}
    if others.pop("recall", True):
        scores |= {"recall": mean(dice) + 1, "recall_per_class": [value + 1 for value in dice]}
    rest = len(dice)
    return {
        "budget": 0.1,
        "method": method,
        "pixel": pixel,
        "seed": seed,
        "bound": False,
        "note": "A note.",
        "data": "acdc",
        "scores": scores,
        "class_share": [0.8, *(0.2 * 2 * (k + 1) / (rest * (rest + 1)) for k in range(rest))],
        "device": "a chip",
        "commit": "abc",
        "versions": {"torch": "2.0"},
    } | others


def results_of(runs: list[dict[str, Any]], classes=("background", "left_lung", "b")) -> dict[str, Any]:
    return {"title": "T", "classes": list(classes), "runs": runs}


def test_grids_name_valid_runs_that_differ():
    for path in sorted(GRIDS.glob("*.toml")):
        found = load_grid(path.stem)
        axes = (found.methods, found.pixels, found.budgets, found.seeds)
        bounds = len(found.pixels) * len(found.seeds) if found.bound else 0
        runs = {run_folder(Path(), "x", cell.config.as_dict()) for cell in found.cells()}
        assert len(runs) == len(found.cells()) == math.prod(map(len, axes)) + bounds
    with pytest.raises(FileNotFoundError, match="those here are acdc_budgets, acdc_methods"):
        load_grid("nonesuch")


def test_the_grid_of_table_5_has_its_rows_and_ours():
    cells = load_grid("btcv_methods").cells([1])
    (urpc,) = (cell.config for cell in cells if (cell.method, cell.pixel) == ("urpc", "DyCE"))
    assert (urpc.model.network, urpc.supervised.pixel, urpc.training.seed) == ("dyn_unet", "DyCE", 1)
    bounds = [cell for cell in cells if cell.bound]
    assert [(cell.method, cell.pixel, cell.budget) for cell in bounds] == [
        ("supervised", "CE", 1.0),
        ("supervised", "DyCE", 1.0),
    ]
    assert all(cell.config.data.batch_size == 4 for cell in bounds)
    assert {(cell.budget, cell.config.data.batch_size) for cell in cells if not cell.bound} == {(0.2, 2)}
    table5 = read_published()
    ours = {(Setting(cell.method, cell.bound), cell.pixel) for cell in cells}
    for row in table5.rows:
        if row.method:
            setting = Setting(row.method, row.all_labels)
            assert table5.row_of(setting) is row
            assert {(setting, "CE")} | ({(setting, "DyCE")} if row.dyce else set()) <= ours
    assert table5.row_of(Setting("supervised", bound=False)) is None
    for cell in cells:
        row = read_published().row_of(Setting(cell.method, cell.bound))
        added = row is None or (cell.pixel == "DyCE" and row.dyce is None)
        note = load_config(f"btcv_{cell.method}{'_dyce' if cell.pixel == 'DyCE' else ''}").note
        assert ("o row of Table 5" in note) == (added or cell.method == "supervised")


def test_a_grid_from_runs_to_its_table_and_plots(tiny, tmp_path, capsys):
    out = tmp_path / "out"
    places = ["--runs", str(tmp_path / "runs"), "--device", "cpu"]
    main(["synapse_ssl", "report", tiny, *places, "--out", str(out)])
    assert "No run is finished" in capsys.readouterr().out
    main(["synapse_ssl", "grid", tiny, "--seeds", "0", *places])
    main(["synapse_ssl", "grid", tiny, "--methods", "supervised", "--budgets", "0.5", *places])
    main(["synapse_ssl", "report", tiny, *places, "--out", str(out)])
    printed = capsys.readouterr().out
    assert printed.count("supervised, CE, 50% labelled, seed 1\n") == 1
    assert printed.count("supervised, CE, 100% labelled, seed 0\n") == 1
    assert "100% labelled, seed 1" not in printed
    text = (out / "grid.md").read_text()
    assert text.count("| supervised | ") == text.count("| UA-MT + DyCE | ") == 3  # Dice, recall and distance
    assert text.count("| supervised, all labels | ") == 4  # beside V-Net's printed means as well
    assert "Dice of each organ, as printed and here" in text  # phantoms have the table's organs
    results = json.loads((out / "grid.json").read_text())
    assert [(r["bound"], r["method"], r["pixel"], r["seed"]) for r in results["runs"]] == [
        *((True, "supervised", pixel, 0) for pixel in ("CE", "DyCE")),
        *((False, "supervised", pixel, seed) for pixel in ("CE", "DyCE") for seed in (0, 1)),
        *((False, "ua_mt", pixel, 0) for pixel in ("CE", "DyCE")),
    ]
    for name in ("grid_50_dsc.png", "grid_50_gain.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    main(["synapse_ssl", "report", tiny, *places, "--out", str(out)])
    assert text == (out / "grid.md").read_text()
    main(["synapse_ssl", "report", tiny, "--runs", str(tmp_path / "none"), "--out", str(out)])
    assert text == (out / "grid.md").read_text()  # the runs are gone, what is known of them stays


def test_a_finished_run_replaces_the_former_one_and_another_note_drops_it(tiny, tmp_path):
    tiny_grid = load_grid(tiny)
    former = results_of(
        [
            entry("supervised", "CE", seed, [10.0, 20.0], budget=0.5, note="Tiny.", tested_step=1, seconds=1)
            for seed in (0, 1)
        ]
    )
    (cell, *_) = (cell for cell in tiny_grid.cells([1]) if not cell.bound)
    folder = run_folder(tmp_path, tiny_grid.config_of("supervised"), cell.config.as_dict())
    folder.mkdir()
    new = former["runs"][1] | {"commit": "new", "classes": former["classes"]}
    (folder / METRICS).write_text(json.dumps(new))
    found = collect(tiny_grid, tmp_path, former)
    assert [(run["seed"], run["commit"]) for run in found["runs"]] == [(0, "abc"), (1, "new")]
    assert found["classes"] == ["background", "left_lung", "b"]
    (tmp_path / "tiny.toml").write_text(CONFIG.format(note="Changed."))
    assert collect(tiny_grid, tmp_path, former)["runs"] == []


def test_the_tables_numbers():
    runs = [
        entry("ua_mt", "CE", 0, [5.0, 15.0]),
        entry("ua_mt", "CE", 1, [5.0, 35.0]),
        entry("ua_mt", "DyCE", 1, [20.0, 35.0]),
        entry("depl", "CE", 0, [1.0, 1.5], recall=False),
        entry("supervised", "CE", 0, [60.0, 70.0], budget=1.0, bound=True, commit="def"),
    ]
    text = report(results_of(runs))
    assert (
        "## 10% of the patients labelled: Dice, percent\n\n|  | mean | left lung | b |\n"
        "| --- | ---: | ---: | ---: |\n| supervised, all labels | 65.0 (1) | 60.0 | 70.0 |\n" in text
    )
    assert "| UA-MT | 15.0 ± 7.1 (2) | 5.0 ± 0.0 | 25.0 ± 14.1 |" in text
    assert "| UA-MT | 16.0 ± 7.1 (2) | 6.0 ± 0.0 | 26.0 ± 14.1 |" in text  # recall
    assert "| UA-MT | 1.5 ± 0.7 (2) | 0.5 ± 0.0 | 2.5 ± 1.4 |" in text  # distance
    assert "| DePL | 1.2 (1) | 1.0 | 1.5 |" in text
    assert "| DePL | – | – | – |" in text
    assert "Not all runs recorded recall" in text
    assert (
        "| UA-MT (1) | left lung | 33.33% | +15.0 | +15.0 |\n| UA-MT (1) | b | 66.67% | +0.0 | +0.0 |" in text
    )
    assert "| DePL (" not in text  # no run with DyCE
    assert (
        "| abc | a chip | 2.0 | UA-MT, 10%: 0, 1; UA-MT + DyCE, 10%: 1; DePL, 10%: 0 |\n"
        "| def | a chip | 2.0 | supervised, all labels, 100%: 0 |" in text
    )
    assert "recorded recall" not in report(results_of(runs[:3]))


def test_recall_that_not_every_seed_recorded_has_no_gain():
    runs = [
        entry("cps", pixel, seed, [1.0, 2.0], recall=seed > 0) for pixel in ("CE", "DyCE") for seed in (0, 1)
    ]
    assert "| CPS (2) | b | 66.67% | +0.0 ± 0.0 | – |" in report(results_of(runs))


def test_published_numbers_stand_beside_runs_of_their_labels_alone():
    runs = [
        entry("ua_mt", "CE", 1, [5.0, 35.0]),
        entry("ua_mt", "DyCE", 1, [20.0, 35.0]),
        entry("cps", "CE", 0, [1.0, 1.5]),
        entry("supervised", "CE", 0, [1.0, 1.5]),
        entry("supervised", "CE", 0, [60.0, 70.0], budget=1.0, bound=True),
    ]
    text = report(results_of(runs))
    assert "## Published, on another data set: Synapse" in text
    assert "| UA-MT, 10% | 20.3 | 48.1 | +27.9 | +7.5 | 71.7 | 10.9 | -60.8 | +0.8 |" in text
    assert "| CPS, 10% | 33.6 | – | – | – | 41.2 | – | – | – |" in text
    assert "| supervised, 10% | – | – | – | – | – | – | – | – |" in text
    assert "| supervised, all labels | 62.1 | – | – | – | 10.3 | – | – | – |" in text
    assert "not built here: SS-Net, DST, Adsh, CReST, SimiS, ACISSMIS and CLD." in text
    assert "| DHC, 10% |" not in text
    assert "as printed and here" not in text  # its organs are others
    text = report(results_of([run | {"data": "btcv"} for run in runs]))
    assert "## Published, by another pipeline: Synapse" in text
    assert "another data set" not in text


def test_organs_stand_beside_those_that_are_printed():
    dice = [float(k) for k in range(13)]
    runs = [
        entry("supervised", "CE", 0, [50.0] * 13, budget=1.0, bound=True, data="btcv"),
        entry("supervised", "CE", 0, [40.0] * 13, budget=0.2, data="btcv"),
        entry("ua_mt", "CE", 0, dice, budget=0.2, data="btcv"),
        entry("ua_mt", "DyCE", 0, dice, budget=0.2, data="btcv"),
        entry("cps", "DyCE", 0, dice, budget=0.2, data="btcv"),
    ]
    text = report(results_of(runs, CLASSES))
    lines = text[text.index("as printed and here") :].splitlines()[4:]
    lines = lines[: lines.index("")]
    heads = [line.split(" | ")[0].removeprefix("| ") for line in lines]
    assert len(heads) == 19 + 5
    assert heads[:3] == ["V-Net, printed", "V-Net, here, 100% (1)", "UA-MT, printed"]
    assert heads[heads.index("UA-MT + DyCE, printed") + 1] == "UA-MT + DyCE, here, 20% (1)"
    assert heads[-2:] == [
        "supervised, here, 20%, not in the table (1)",
        "CPS + DyCE, here, 20%, not in the table (1)",
    ]
    printed = "84.6 | 77.2 | 73.8 | 73.3 | 38.2 | 94.6 | 68.4 | 72.1 | 71.2 | 58.2 | 48.5 | 17.9 | 29.0"
    assert lines[0] == f"| V-Net, printed | 62.1 | 10.3 | {printed} |"
    assert lines[3].startswith("| UA-MT, here, 20% (1) | 6.0 | 0.6 | 0.0 | 1.0 | 2.0 |")


def test_table_5_is_complete():
    table5 = read_published()
    scores = [score for row in table5.rows for score in (row.plain, row.dyce) if score]
    assert len(scores) == 19
    assert all(len((score.dsc, score.asd, *score.per_organ)) == 15 for score in scores)
    assert table5.organs == tuple(name.replace("_", " ") for name in CLASSES[1:])
    assert {row.method for row in table5.rows} - {None} == set(METHODS)
    assert [row.name for row in table5.rows if row.dyce] == ["UA-MT", "URPC", "DePL", "DHC", "A&D"]
    assert [row.name for row in table5.rows if row.all_labels] == ["V-Net"]


def test_the_errata_of_table_5_are_all_that_does_not_add_up():
    """Means within 0.06 of the organs', gains of the means within 0.11 of the printed rows': but for the errata."""
    wrong = set()
    for row in read_published().rows:
        for kind, scores in (("", row.plain), (" + DyCE", row.dyce)):
            if scores and abs(mean(scores.per_organ) - scores.dsc) > 0.06:
                wrong.add(f"{row.name}{kind}: mean")
        if row.dyce and row.printed_gain:
            wrong |= {f"{row.name}: {name}" for name in _wrong_gains(row.plain, row.dyce, row.printed_gain)}
    assert wrong == {"URPC: mean", "DePL: distance", "A&D: distance"}
    by_name = {row.name: row for row in read_published().rows}
    gain = {
        name: mean(by_name[name].dyce.per_organ) - mean(by_name[name].plain.per_organ)
        for name in ("UA-MT", "DePL")
    }
    assert {name: f"{value:+.1f}" for name, value in gain.items()} == {"UA-MT": "+27.9", "DePL": "+15.6"}
    spleen, *others = by_name["URPC"].plain.per_organ
    assert spleen == 60.7
    assert f"{mean([66.7, *others]):.1f}" == f"{by_name['URPC'].plain.dsc}"


def _wrong_gains(plain: Scores, dyce: Scores, printed: Scores) -> list[str]:
    sides = {"Dice": (plain.dsc, dyce.dsc, printed.dsc), "distance": (plain.asd, dyce.asd, printed.asd)}
    organs = zip(plain.per_organ, dyce.per_organ, printed.per_organ, strict=True)
    sides |= {f"organ {k}": organ for k, organ in enumerate(organs)}
    return [name for name, (before, after, gain) in sides.items() if abs(after - before - gain) > 0.11]


@pytest.mark.parametrize("key", ["per_organ", "per_organ_dyce"])
def test_a_row_that_lacks_an_organ_is_refused(tmp_path, key):
    content = {"per_organ": "[1.0, 2.0]", "per_organ_dyce": "[1.0, 2.0]"} | {key: "[1.0]"}
    path = tmp_path / "published.toml"
    path.write_text(
        'data = "d"\nsource = "s"\nerrata = []\norgans = ["a", "b"]\n[[row]]\nname = "X"\ntype = "t"\n'
        "dsc = 1.0\nasd = 1.0\ndsc_dyce = 1.0\nasd_dyce = 1.0\n"
        "printed_gain_dsc = 0.0\nprinted_gain_asd = 0.0\nprinted_gain_per_organ = [0.0, 0.0]\n"
        + "".join(f"{name} = {value}\n" for name, value in content.items())
    )
    with pytest.raises(ValueError, match=f"X: {key} has 1 numbers for 2 organs"):
        read_published(path)


def test_the_plots_show_the_gain_from_the_most_frequent_class_to_the_rarest():
    runs = [
        entry("cps", "CE", 0, [10.0, 20.0], class_share=[0.9, 0.02, 0.08]),
        entry("cps", "DyCE", 0, [12.0, 30.0], class_share=[0.9, 0.02, 0.08]),
        entry("cps", "DyCE", 1, [90.0, 90.0]),  # no run with CE
    ]
    results = results_of(runs)
    figure = gain_against_frequency(results, 0.1)
    panel, behind = figure.axes
    dice, recall = (container.lines[0] for container in panel.containers)
    assert list(dice.get_ydata()) == list(recall.get_ydata()) == [10, 2]
    assert [bar.get_height() for bar in behind.patches] == pytest.approx([80, 20])
    assert [label.get_text() for label in panel.get_xticklabels()] == ["b, 80%", "left lung, 20%"]
    heights = [bar.get_height() for bar in bars(results, 0.1).axes[0].patches]
    assert heights == [15, (21 + 90) / 2]
    assert gain_against_frequency(results_of(runs[:1]), 0.1) is None


def test_a_panel_for_each_method_and_bound():
    runs = [entry("cps", pixel, 0, [10.0, 20.0]) for pixel in ("CE", "DyCE")]
    bound = [run | {"bound": True, "budget": 1.0, "method": "supervised"} for run in runs]
    figure = gain_against_frequency(results_of(runs + bound), 0.1)
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == [
        "supervised, all labels (1)",
        "CPS (1)",
    ]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_the_committed_pages_are_the_reports_of_the_committed_runs(path):
    assert path.with_suffix(".md").read_text() == report(json.loads(path.read_text()))
