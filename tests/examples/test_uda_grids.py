"""The shipped configurations and grids, and a grid from its runs to its page."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("kornia")
pytest.importorskip("matplotlib")

from examples.__main__ import main
from examples.common.config import run_folder
from examples.common.published import read_published
from examples.common.training import one_thread
from examples.uda_gbw.config import CONFIGS, load_config
from examples.uda_gbw.grid import GRIDS, load_grid
from examples.uda_gbw.report import PUBLISHED


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def test_shipped_configurations_are_valid_and_say_what_they_are():
    configs = {path.stem: load_config(path) for path in sorted(CONFIGS.glob("*.toml"))}
    assert {"camvid", "gta5", "gta5_hrda", "smoke", "synthia"} <= configs.keys()
    assert all(config.note for config in configs.values())
    assert len({json.dumps(config.as_dict()) for config in configs.values()}) == len(configs)


@pytest.mark.parametrize("path", sorted(GRIDS.glob("*.toml")), ids=lambda path: path.stem)
def test_grids_name_valid_runs(path):
    found = load_grid(path.stem)
    folders = {
        run_folder(Path(), "x", found.run(row, variant, seed).as_dict())
        for row, variant, seed in product(found.rows, found.variants, found.seeds)
    }
    shared = len(found.seeds) if path.stem == "readings" else 0  # "no weights" is the same for every λ
    assert len(folders) == len(found.rows) * len(found.variants) * len(found.seeds) - shared


def test_grids_that_are_wrong_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="those here are gta5_table1, gta5_table4a"):
        load_grid("nonesuch")
    path = tmp_path / "tiny.toml"
    path.write_text('title = "Tiny"\n')
    with pytest.raises(ValueError, match="lacks the key 'config'"):
        load_grid(str(path))
    parts = '[[row]]\nlabel = "a"\nset = []\n[[variant]]\nlabel = "b"\nset = []\n'
    for line, message in (
        ('weights_of = [["a", "c"]]', "weights_of must be pairs of a row and a variant"),
        ('compare = [["a", "b"]]', "compare must be pairs of variants or of rows, got ['a', 'b']"),
    ):
        path.write_text(f'title = "Tiny"\nconfig = "smoke"\nseeds = [0]\n{line}\n' + parts)
        with pytest.raises(ValueError, match=re.escape(message)):
            load_grid(str(path))


def test_a_grid_from_runs_to_its_page(uda_place, tmp_path, capsys):
    path = tmp_path / "tiny.toml"
    path.write_text(
        'title = "Tiny"\nconfig = "smoke"\nseeds = [0, 1]\nset = ["training.iterations=2"]\n'
        'published = ["table1_gta5"]\n'
        'weights_of = [["source only", "GBW"]]\ncompare = [["CE", "GBW"]]\n'
        '[[variant]]\nlabel = "CE"\nset = [\'weighting.scheme="none"\']\n[[variant]]\nlabel = "GBW"\nset = []\n'
        '[[row]]\nlabel = "source only"\nset = []\npaper = "HRDA"\n'
        '[[row]]\nlabel = "MinEnt"\nset = [\'method="entropy"\']\n'
    )
    folders = [
        "--target",
        str(uda_place / "target"),
        "--runs",
        str(tmp_path / "runs"),
    ]
    out = ["--out", str(tmp_path / "out")]
    main(["uda_gbw", "report", str(path), *folders, *out])
    assert "No run is finished" in capsys.readouterr().out
    main(["uda_gbw", "grid", str(path), "--rows", "source only", "--device", "cpu", *folders])
    with pytest.raises(ValueError, match="has the rows source only, MinEnt, got 'other'"):
        main(["uda_gbw", "grid", str(path), "--rows", "other", "--device", "cpu", *folders])
    main(["uda_gbw", "report", str(path), *folders, *out])
    text = (tmp_path / "out" / "tiny.md").read_text()
    assert "|  | CE | GBW | difference |" in text
    assert "| MinEnt | – | – | – |" in text
    assert "## Beside the paper: Table 1, GTA5 to Cityscapes, mIoU over 19 classes" in text
    assert "|  | ours, CE | ours, GBW | paper, CE | paper, GBW |" in text
    assert "| MinEnt | – | – | – | – |" in text
    assert "| MIC | – | – | 75.9 | 76.4 |" in text
    assert re.search(r"\| HRDA: source only \| [\d.]+ ± [\d.]+ \| [\d.]+ ± [\d.]+ \| 73.8\* \| 74.7 \|", text)
    assert "| source only | CE | 1.0000 | 1.0000 | 0.0000 |" in text
    assert (
        "Runs: 4, of 2 steps; batch 2 of source and of target; training crops (height×width): 32×48; seeds 0, 1"
        in text
    )
    content = json.loads((tmp_path / "out" / "tiny.json").read_text())
    assert [run["seed"] for run in content["rows"]["source only"]["GBW"]] == [0, 1]
    assert "## Recall of each class on val_alt" in text
    assert len(re.findall(r"\| source only: GBW against CE \(2\) \| \d+ of \d+ \|", text)) == 2  # IoU, recall
    for name in (
        "tiny_scores_val_alt",
        "tiny_weights_source_only_gbw",
        "tiny_ranges_source_only_gbw",
        "tiny_recall_source_only_gbw_against_ce_val_alt",
        "tiny_spread_source_only_gbw_against_ce_val_alt",
    ):
        assert (tmp_path / "out" / "plots" / f"{name}.png").is_file()
        assert f"(plots/{name}.png)" in text


def test_every_published_table_stands_in_a_grid_that_has_its_rows():
    published = read_published(PUBLISHED)
    grids = [load_grid(path.stem) for path in GRIDS.glob("*.toml")]
    shown = {key for one in grids for key in one.published}
    assert shown == {*published} - {"table3"}  # which is on the panoptic page
    for one in grids:
        named = {row.paper or row.label for row in one.rows}
        printed = {name for key in one.published for name in published[key].rows}
        assert {row.paper for row in one.rows if row.paper} <= printed
        for key in {*one.published} - {"table2", "figure4b"}:
            assert {*published[key].rows} <= named, (one.name, key)
            if published[key].data == one.run(one.rows[0], one.variants[0], 0).data.kind:
                assert {variant.label for variant in one.variants} <= {*published[key].columns}


def test_figure_4b_averages_to_what_its_notes_say():
    """A misread cell would show."""
    table = read_published(PUBLISHED)["figure4b"]
    assert len(table.rows) == 19
    means = [sum(map(float, column)) / 19 for column in zip(*table.rows.values(), strict=True)]
    assert ", ".join(f"{value:+.2f}" for value in means) == "+0.34, +0.94, +1.52, +0.25"


@pytest.mark.parametrize("path", sorted(GRIDS.glob("*.toml")), ids=lambda path: path.stem)
def test_what_is_compared_differs_in_the_weights_alone(path):
    """Data, seeds and recipe of both sides are the same, so crops and their order are, too."""
    found = load_grid(path.stem)
    rows = {row.label: row for row in found.rows}
    variants = {variant.label: variant for variant in found.variants}
    for before, after in found.compare:
        if before in variants:
            sides = [(row, variants[name]) for row in found.rows for name in (before, after)]
        else:
            sides = [(rows[name], variant) for variant in found.variants for name in (before, after)]
        configs = [found.run(row, variant, 0).as_dict() for row, variant in sides]
        for one, other in zip(configs[::2], configs[1::2], strict=True):
            assert {key for key in one if one[key] != other[key]} == {"weighting"}


def test_methods_without_rare_class_sampling_in_the_paper_are_without_it():
    for name in ("gta5_table1", "synthia_table1"):
        found = load_grid(name)
        sampled = {
            row.label for row in found.rows if found.run(row, found.variants[0], 0).data.rare_class_sampling
        }
        assert sampled == {"DAFormer", "DAFormer + HRDA", "DAFormer + HRDA + MIC"}
    four = load_grid("gta5_table4a")
    runs = [four.run(row, four.variants[0], 0) for row in four.rows]
    assert {(run.method, run.data.rare_class_sampling) for run in runs} == {
        ("daformer", False),
        ("daformer", True),
    }
