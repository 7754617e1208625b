"""A paper's tables: how they are read, marked and set beside ours."""

from __future__ import annotations

import pytest

from examples.common.published import above, beside, read_published

FILE = """
[t]
table = "Table 1"
setting = "toys, mIoU"
data = "toys"
columns = ["10 labels", "20 labels", "all labels"]
notes = ["The caption is another table's."]
[t.rows]
"A" = [1, nan, 2.25]
"B" = ["?", [70.0, 0.6], "+3"]
[[t.errata]]
row = "A"
columns = ["10 labels"]
note = "the text says 1.5."
"""


@pytest.fixture
def table(tmp_path):
    (tmp_path / "published.toml").write_text(FILE)
    return read_published(tmp_path / "published.toml")["t"]


def test_cells_are_read_and_marked(table):
    assert table.rows == {"A": ("1.0*", "–", "2.2"), "B": ("?", "70.0 ± 0.6", "+3")}
    assert table.cell("B", "20 labels") == "70.0 ± 0.6"
    assert table.cell("C", "20 labels") == table.cell("B", "30 labels") == "–"
    assert table.remarks == ("\\* A, 10 labels: the text says 1.5.", "The caption is another table's.")


def test_our_columns_stand_in_front_of_those_of_the_same_data(table):
    lines = beside(table, ["20 labels", "5 labels"], {"B": ["69.1", "50.0"], "C": ["1.0", "–"]}, same=True)
    assert lines == [
        "## Beside the paper: Table 1, toys, mIoU",
        "",
        "–: not printed, or not run here. ?: not legible in the copy at hand. \\*: see below.",
        "",
        "|  | ours, 5 labels | paper, 10 labels | ours, 20 labels | paper, 20 labels | paper, all labels |",
        "| --- | --- | --- | --- | --- | --- |",
        "| A | – | 1.0* | – | – | 2.2 |",
        "| B | 50.0 | ? | 69.1 | 70.0 ± 0.6 | +3 |",
        "| C | – | – | 1.0 | – | – |",
        "",
        "- \\* A, 10 labels: the text says 1.5.",
        "- The caption is another table's.",
    ]


def test_our_columns_of_other_data_stand_together(table):
    lines = beside(table, ["20 labels"], {"B": ["69.1"]}, same=False)
    assert "|  | ours, 20 labels | paper, 10 labels | paper, 20 labels | paper, all labels |" in lines
    assert lines[2].endswith(
        "Ours are of another data set: the order of rows may be compared, the level not."
    )


def test_two_of_our_rows_may_read_a_printed_one(table):
    lines = beside(
        table, ["5 labels"], {"b": ["1"], "b, too": ["2"]}, same=True, names={"b": "B", "b, too": "B"}
    )
    assert lines[-6:-3] == [
        "| A | – | 1.0* | – | 2.2 |",
        "| B: b | 1 | ? | 70.0 ± 0.6 | +3 |",
        "| B: b, too | 2 | ? | 70.0 ± 0.6 | +3 |",
    ]


def test_our_rows_stand_below_a_table_of_many_columns(table):
    lines = above(table, {"b": {"20 labels": "69.1", "5 labels": "50.0"}})
    assert lines[4:9] == [
        "|  | 10 labels | 20 labels | all labels |",
        "| --- | --- | --- | --- |",
        "| A | 1.0* | – | 2.2 |",
        "| B | ? | 70.0 ± 0.6 | +3 |",
        "| ours, b | – | 69.1 | – |",
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("nan, ", "", "t: A has 2 cells for 3 columns"),
        ('setting = "toys, mIoU"', "", "lacks the key 'setting'"),
        ('row = "A"', 'row = "C"', "an erratum names no cell: C"),
        ('columns = ["10 labels"]', 'columns = ["9 labels"]', "an erratum names no cell: A, .'9 labels'"),
    ],
)
def test_wrong_files_are_refused(tmp_path, old, new, message):
    path = tmp_path / "published.toml"
    path.write_text(FILE.replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_published(path)
