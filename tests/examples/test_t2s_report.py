"""T2S-DA's grids, their report, and the commands of its page in the documentation."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from examples.__main__ import main
from examples.common.config import run_folder
from examples.common.published import read_published
from examples.t2s_da.config import CONFIGS, load_config
from examples.t2s_da.grid import GRIDS, load_grid
from examples.t2s_da.report import PUBLISHED, report

PAGE = Path(__file__).parents[2] / "docs" / "reproducing" / "t2s_da.md"


def test_grids_name_valid_runs_that_differ():
    paths = sorted(GRIDS.glob("*.toml"))
    assert paths
    for path in paths:
        found = load_grid(path.stem)
        runs = [found.run(overrides, found.seeds[0]) for _, overrides in found.rows]
        assert len({run_folder(Path(), "x", config.as_dict()) for config in runs}) == len(runs)
        assert len({label for label, _ in found.rows}) == len(found.rows)
        assert found.rows[0][1] == ()  # what the others are compared with
    with pytest.raises(FileNotFoundError, match="those here are camvid_generalization"):
        load_grid("nonesuch")


def test_a_grid_that_lacks_a_key_is_refused(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text('title = "Bad"\nconfig = "smoke"\nseeds = [0]\n[[row]]\nlabel = "a"\nset = []\n')
    with pytest.raises(ValueError, match="lacks the key 'paper'"):
        load_grid(str(path))


def test_a_grid_from_runs_to_its_table(street_folder, tmp_path, capsys):
    path = tmp_path / "tiny.toml"
    short = '"training.iterations=1", "training.eval_every=0", "data.streets=3"'
    path.write_text(
        'title = "Tiny"\nconfig = "smoke"\nseeds = [0, 1]\npaper = "nothing"\n'
        'published = ["table7", "table3"]\n'
        f'[[row]]\nlabel = "all"\npaper = {{ table7 = "vanilla contrast" }}\nset = [{short}]\n'
        f'[[row]]\nlabel = "DACS"\nset = [{short}, "components.pull=false"]\n'
    )
    places = [
        "--target",
        str(street_folder),
        "--runs",
        str(tmp_path / "runs"),
    ]
    out = ["--out", str(tmp_path / "out")]
    main(["t2s_da", "report", str(path), *places, *out])
    assert "No run is finished" in capsys.readouterr().out
    main(["t2s_da", "grid", str(path), "--device", "cpu", "--seeds", "0", *places])
    main(["t2s_da", "grid", str(path), "--device", "cpu", *places])
    (run_folder(tmp_path / "runs", "smoke", load_grid(str(path)).run([*_short(path)], 1).as_dict())).rename(
        tmp_path / "away"
    )
    main(["t2s_da", "report", str(path), *places, *out])
    text = (tmp_path / "out" / "tiny.md").read_text()
    rows = json.loads((tmp_path / "out" / "tiny.json").read_text())["rows"]
    assert [[run["seed"] for run in rows[label]] for label in ("all", "DACS")] == [[0], [0, 1]]
    scores = [rows[label][0]["scores"]["val_alt"]["mean_iou"]["mIoU11"] for label in ("all", "DACS")]
    ccd = rows["all"][0]["scores"]["val_alt"]["ccd"]["mean"]
    line = next(line for line in text.splitlines() if line.startswith("| all | "))
    assert line.startswith(f"| all | {100 * scores[0]:.1f} | ")
    assert line.endswith(" | (1†) |")
    assert f" | +0.0 | {ccd:.3f} | " in line
    line = next(line for line in text.splitlines() if line.startswith("| DACS | "))
    assert f" | {100 * (scores[1] - scores[0]):+.1f} | " in line  # over the one seed that both have
    assert line.endswith(" | (2) |")
    assert f"| vanilla contrast: all | {100 * scores[0]:.1f} | 68.5 ± 0.3 |" in text
    assert "| target to source | – | 68.6 ± 1.3 |" in text
    assert "| T2S-DA (w/ MIC) | 97.5 | 80.3 |" in text
    assert "\n| ours, " not in text  # another data set's classes
    assert "Runs: 3, of 1 steps; crops of 32×48 (height×width); seeds 0, 1; " in text
    assert (tmp_path / "out" / "plots" / "tiny_val_alt.png").is_file()
    assert "(plots/tiny_val_alt.png)" in text
    assert "(plots/tiny_val_alt_similarity.png)" in text
    bars = [plotted.stat().st_size for plotted in sorted((tmp_path / "out" / "plots").iterdir())]
    assert len(bars) == 2
    assert min(bars) > 2000


def _run(**more):
    """A run with two classes that have pixels, of toy scores."""
    entry = {
        "mean_iou": {"mIoU11": 0.5},
        "iou": [0.25, 0.75, None],
        "pixels": [3, 1, 0],
        "pixel_accuracy": 0.5,
    }
    run = {"scores": {"val": entry}, "classes": ["road", "traffic_light", "terrain"], "seed": 0, "steps": 1}
    run |= {"crop": [4, 4], "seconds": 3600.0, "device": "abacus", "threads": 1, "ranks": 1, "commit": "f00"}
    return run | more


def test_scores_without_the_pull_loss_and_of_the_tail_stand_in_their_columns():
    found = load_grid("gta5_parts")
    rows = {label: [_run()] if label in ("T2S-DA", "no pull loss") else [] for label, _ in found.rows}
    text = report(found, rows, read_published(PUBLISHED))
    assert "| on the pull loss: T2S-DA | 50.0 | 70.0 ± 0.6 | 50.0 | 63.7 ± 0.8 |" in text
    assert "| FDA: T2S-DA | 50.0 | 70.0 ± 0.6 | – | 68.8 ± 0.5* |" in text
    assert "| none: no pull loss | – | – | 50.0 | 68.3 ± 0.5 |" in text


def test_scores_on_the_source_and_similarities_have_tables_of_their_own():
    found = load_grid("gta5_main")
    run = _run(source={"mean_iou": {"mIoU11": 0.9}, "iou": [0.875, None, 0.125], "pixels": [1, 0, 1]})
    run["scores"]["val"]["similarity"] = {"mean": 0.5, "classes": [0.75, 0.25, None]}
    rows = {label: [run] if not overrides else [] for label, overrides in found.rows}
    text = report(found, rows, read_published(PUBLISHED))
    ours = [line for line in text.splitlines() if line.startswith("| ours, T2S-DA | ")]
    assert [line.split(" | ")[1] for line in ours] == [
        "25.0",
        "87.5",
    ]  # Table 3 on the target, 17 on the source
    assert [line.split(" | ")[-1] for line in ours] == ["50.0 |", "90.0 |"]
    tables = {part.split("\n", 1)[0]: part for part in text.split("\n## ")}
    assert "| T2S-DA | 25.0 | 75.0 |" in tables["Similarity of each class's features, val and source"]
    assert "| T2S-DA | – | 87.5 |" in tables["IoU of each class on source"]
    assert "| T2S-DA | 75.0 | 25.0 |" in tables["IoU of each class on val"]


def test_our_rows_stand_below_a_table_of_the_same_classes():
    table = read_published(PUBLISHED)["table5"]
    entry = {"mean_iou": {"mIoU16": 0.5, "mIoU13": 0.6}, "iou": [0.25, 0.75, None], "pixels": [3, 1, 0]}
    entry |= {"pixel_accuracy": 0.5}
    run = {"scores": {"val": entry}, "classes": ["road", "traffic_light", "terrain"], "seed": 0, "steps": 1}
    run |= {"crop": [4, 4], "seconds": 3600.0, "device": "abacus", "threads": 1, "ranks": 1, "commit": "f00"}
    found = load_grid("synthia_main")
    rows = {label: [run, run | {"seed": 1}] if not overrides else [] for label, overrides in found.rows}
    text = report(found, rows, read_published(PUBLISHED))
    line = next(line for line in text.splitlines() if line.startswith("| ours, T2S-DA | "))
    cells = dict(zip(table.columns, line.strip("| ").split(" | ")[1:], strict=True))
    assert {name: cell for name, cell in cells.items() if cell != "–"} == {
        "road": "25.0 ± 0.0",
        "traffic light": "75.0 ± 0.0",
        "mIoU": "50.0 ± 0.0",
        "mIoU*": "60.0 ± 0.0",
    }


def test_rows_name_what_the_paper_prints_and_every_table_is_shown():
    published = read_published(PUBLISHED)
    grids = [load_grid(path.stem) for path in GRIDS.glob("*.toml")]
    assert {key for one in grids for key in one.published} == set(published)
    for one in grids:
        for key, names in one.names.items():
            assert {row for row, _ in names.values()} <= {*published[key].rows}, (one.name, key)
            assert {column for _, column in names.values()} <= {*published[key].columns}, (one.name, key)
    swept = load_grid("gta5_numbers")
    for key in ("table12", "table13", "table15", "table16"):
        assert {row for row, _ in swept.names[key].values()} == {*published[key].rows}
    assert {row for row, _ in load_grid("gta5_table7").names["table7"].values()} == {
        *published["table7"].rows
    }
    assert {row for row, _ in load_grid("gta5_table8").names["table8"].values()} == {
        *published["table8"].rows
    }
    parts = load_grid("gta5_parts").names
    assert {row for row, _ in parts["table9"].values()} == {*published["table9"].rows}
    assert {row for row, _ in parts["table10"].values()} == {*published["table10"].rows}
    trained = {row for row in published["table11"].rows if row.endswith("(trained)")}
    assert {row for row, _ in parts["table11"].values()} == {*published["table11"].rows} - trained
    both = [row for row, _ in parts["table11"].values() if row != "none"]
    assert all(both.count(row) == 2 for row in both)  # with the pull loss and without it


def test_published_means_are_those_of_their_classes():
    """A misread cell would show, but for the means that the file itself lists as the paper's errors."""
    checked = 0
    for key, table in read_published(PUBLISHED).items():
        if "road" in table.columns:
            classes = [table.columns.index(name) for name in table.columns if not name.startswith("mIoU")]
            for name, row in table.rows.items():
                values = [row[i].rstrip("*") for i in classes] + [row[table.columns.index("mIoU")]]
                if not {"?", "–"} & {*values}:
                    numbers = [float(value) for value in values[:-1]]
                    far = abs(sum(numbers) / len(numbers) - float(values[-1].rstrip("*"))) > 0.15
                    assert far == values[-1].endswith("*"), (key, name)
                    checked += 1
    assert checked == 46


def _short(path: Path) -> tuple[str, ...]:
    return load_grid(str(path)).rows[0][1]


def _commands() -> list[list[str]]:
    blocks = re.findall(r"^```\{code-block\} sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if "-m examples " in line]
    found = []
    for line in lines:
        words = shlex.split(line.split("-m examples t2s_da ", 1)[1].split("; done")[0], comments=True)
        names = line.split(" in ")[1].split(";")[0].split() if "$grid" in line else [None]
        found += [[name if word == "$grid" else word for word in words] for name in names]
    return found


def test_the_pages_commands_name_what_exists_and_all_of_it():
    named = set()
    for action, name, *_ in _commands():
        if name == "--smoke":
            continue
        named |= {name} if action == "train" else {name, load_grid(name).config}
        assert action != "train" or load_config(name)
    assert {path.stem for path in GRIDS.glob("*.toml")} <= named
    assert {path.stem for path in CONFIGS.glob("*.toml")} - named == {"smoke"}


def test_every_switch_of_the_page_is_a_key():
    config = load_config("smoke")
    sections = (
        "data|components|translation|self_training|feature_distance|hrda|mic|reweighting|pull|model|training"
    )
    keys = re.findall(rf"`({sections})\.(\w+)", PAGE.read_text())
    assert len(keys) > 20
    for section, key in keys:
        assert hasattr(getattr(config, section), key), f"{section}.{key}"
