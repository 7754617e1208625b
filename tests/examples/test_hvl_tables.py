"""HVL's grids of Table 1, and the paper's tables beside our runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from examples.common.config import run_folder
from examples.common.outcome import METRICS
from examples.common.published import read_published
from examples.hvl.config import load_config
from examples.hvl.data.voc import CLASSES, PRINTED
from examples.hvl.grid import PUBLISHED, load_grid, write_report
from examples.hvl.tables import paper_sections

# Labelled images of the published splits, where the paper rounds them.
ROUNDED = {"1.8k": 1849, "3.7k": 3697, "1.3k": 1263, "2.5k": 2526, "1.4k": 1488}
DATA = ("voc", "coco", "ade20k", "cityscapes")


@pytest.mark.parametrize("kind", DATA)
def test_budgets_are_those_of_table_1(kind: str) -> None:
    grid, table = load_grid(f"table1_{kind}"), read_published(PUBLISHED)[f"table1_{kind}"]
    assert [*grid.rows] == [*table.rows]
    assert len(grid.rows) == 5
    assert grid.column in table.columns
    assert table.data == kind
    for label in grid.rows:
        config = grid.run(label, 0)
        found = re.fullmatch(r"1/(\d+) \((.+)\)", label)
        assert found is not None
        assert config.data.kind == kind
        assert config.data.budget == (ROUNDED.get(found[2]) or int(found[2]))
        assert config.data.split == (found[2] if kind == "voc" else f"1_{found[1]}")
    assert load_config(kind).data == grid.run(next(iter(grid.rows)), 0).data


def test_tables_1_to_4_are_there() -> None:
    published = read_published(PUBLISHED)
    assert {*published} == {*(f"table1_{kind}" for kind in DATA), "table2", "table3", "table4"}
    assert all(len(published[f"table1_{kind}"].rows) == 5 for kind in DATA)
    assert published["table1_coco"].cell("1/512 (232)", "Ours (ViT-B/16)") == "54.5"
    assert published["table1_ade20k"].cell("1/8 (2.5k)", "Ours (last column)") == "52.6"


def test_headings_of_table_2_are_the_classes() -> None:
    table = read_published(PUBLISHED)["table2"]
    assert {*PRINTED} == {*CLASSES}
    assert sorted(PRINTED.values()) == sorted(table.columns)
    means = {"UniMatch (ViT)": 77.9, "SemiVL": 84.0}  # of Table 1 and of SemiVL, with 92 labels
    for row, mean in means.items():
        assert sum(map(float, table.rows[row])) / 21 == pytest.approx(mean, abs=0.5)


def test_our_classes_stand_below_those_of_table_2() -> None:
    iou = [c / 100 for c in range(21)]
    run = {"classes": list(CLASSES), "scores": {"val": {"mean_iou": {"mIoU21": 0.1}, "iou": iou}}}
    results = {"kind": "voc", "column": "mIoU", "published": ["table2"], "rows": {"all": [run], "none": []}}
    lines = paper_sections(results, read_published(PUBLISHED), "val", "mIoU21")
    heads = [cell.strip() for cell in next(x for x in lines if "Airplane" in x).split("|")[2:-1]]
    (ours,) = [x for x in lines if x.startswith("| ours,")]
    cells = dict(zip(heads, (cell.strip() for cell in ours.split("|")[2:-1]), strict=True))
    assert ours.startswith("| ours, all |")
    assert (cells["Backgr."], cells["Airplane"], cells["Din.Table"]) == ("0.0", "1.0", "11.0")
    assert cells["Monitor"] == "20.0"
    elsewhere = paper_sections({**results, "kind": "camvid"}, read_published(PUBLISHED), "val", "mIoU21")
    assert not any(line.startswith("| ours") for line in elsewhere)


def test_a_budgets_mean_stands_at_the_papers_column(tmp_path: Path) -> None:
    grid = load_grid("table1_coco")
    label = "1/512 (232)"
    folder = run_folder(tmp_path, grid.config, grid.run(label, 0).as_dict())
    folder.mkdir(parents=True)
    entry = {"mean_iou": {"mIoU81": 0.5}, "iou": [0.5] * 81, "pixel_accuracy": 0.9, "pixels": [10] * 81}
    cost = {"seconds": 3600.0, "device": "a GPU", "threads": 1, "commit": "0123"}
    found = {
        "classes": [f"c{i}" for i in range(81)],
        "labelled": 232,
        "steps": 147560,
        "scores": {"val2017": entry},
    }
    (folder / METRICS).write_text(json.dumps(found | cost))
    page = write_report(grid, tmp_path, tmp_path / "out")
    heads = [cell.strip() for cell in re.search(r"^\|.*paper, SemiVL.*$", page, re.MULTILINE)[0].split("|")]
    row = [
        cell.strip()
        for cell in page.split("paper, SemiVL", 1)[1].split(f"| {label} |", 1)[1].split("\n")[0].split("|")
    ]
    at = heads.index("ours, Ours (ViT-B/16)")
    assert heads[at + 1] == "paper, Ours (ViT-B/16)"
    assert row[at - 2 : at] == ["50.0", "54.5"]
    assert "steps: 147560" in page
    assert "no run" not in page.lower()


def test_a_published_split_belongs_to_the_run(tmp_path: Path) -> None:
    """What a report looks for needs no `--splits`."""
    first, second = (
        load_grid("table1_voc").run(label, 0).as_dict() for label in ("1/115 (92)", "1/58 (183)")
    )
    assert first["data"]["split"] == "92"
    assert first != second
    assert "splits" not in first["data"]
