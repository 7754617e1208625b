"""What a paper prints, to stand beside our numbers: its tables, and where they disagree with themselves.

An example's `published.toml` has a section for each printed table and setting:

    [components_gta5]
    table = "Table 3"
    setting = "GTA5 to Cityscapes, mIoU over 19 classes"
    data = "gta5-cityscapes"            # the data of runs whose numbers may be compared in level
    columns = ["100 labels", "200 labels"]
    notes = ["The caption says three settings, the table has four."]
    [components_gta5.rows]
    "CT" = [54.5, nan]                  # nan: a dash is printed; "?": not legible; [70.0, 0.6]: mean and deviation
    [[components_gta5.errata]]
    row = "CT"
    columns = ["100 labels"]
    note = "Another table prints 54.6."
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

from examples.common.config import read_toml
from examples.common.markdown import markdown_table

NONE = "–"
_NOT_LEGIBLE = "?"
_ERRATUM = "*"


@dataclass(frozen=True)
class Table:
    """A printed table. Cells are text; an asterisk marks those that `remarks` says more of."""

    name: str
    setting: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[str, ...]]
    remarks: tuple[str, ...]
    data: str = ""

    def cell(self, row: str, column: str) -> str:
        """One cell; a dash where the table has no such row or column."""
        if row not in self.rows or column not in self.columns:
            return NONE
        return self.rows[row][self.columns.index(column)]


def read_published(path: Path) -> dict[str, Table]:
    """The tables of a file by their keys.

    Raises:
        ValueError: a key is missing, a row has not as many cells as columns, or an erratum names no cell.
    """
    try:
        return {key: _table(f"{path}, {key}", section) for key, section in read_toml(path).items()}
    except KeyError as error:
        raise ValueError(f"a table of {path} lacks the key {error}") from error


def beside(
    table: Table,
    heads: Sequence[str],
    ours: Mapping[str, Sequence[str]],
    *,
    same: bool,
    names: Mapping[str, str] | None = None,
) -> list[str]:
    """The lines of a section: a printed table with our columns in it, and what is to be said of it.

    Printed rows come first, in their order, then those that the paper does not have.

    Args:
        table: of the paper.
        heads: our columns.
        ours: our rows, a cell for each of our columns.
        same: whether ours are of the paper's data. Then a column of ours stands in front of the printed one of its
            name; otherwise ours stand together.
        names: the printed rows of those of ours that have another label; two of ours may be readings of one.
    """
    own = {head: {row: cells[i] for row, cells in ours.items()} for i, head in enumerate(heads)}
    order = [("ours", head) for head in heads if not (same and head in table.columns)]
    for head in table.columns:
        order += [("ours", head)] if same and head in own else []
        order.append(("paper", head))
    of_row: dict[str, list[str]] = {row: [] for row in table.rows}
    for label in ours:
        of_row.setdefault((names or {}).get(label, label), []).append(label)
    rows = []
    for row, labels in of_row.items():
        for label in labels or [""]:
            cells = [
                table.cell(row, head) if side == "paper" else own[head].get(label, NONE)
                for side, head in order
            ]
            rows.append([_title(row, label), *cells])
    return [
        f"## Beside the paper: {table.name}, {table.setting}",
        "",
        _legend(table, same=same or not heads),
        "",
        *markdown_table(["", *(f"{side}, {head}" for side, head in order)], rows),
        *remarks(table),
    ]


def above(table: Table, ours: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The lines of a section: a printed table with our rows below its own, for tables of many columns.

    Args:
        table: of the paper.
        ours: our rows, a cell for each column that we have.
    """
    rows = [[name, *cells] for name, cells in table.rows.items()]
    rows += [[f"ours, {name}", *(cells.get(c, NONE) for c in table.columns)] for name, cells in ours.items()]
    return [
        f"## Beside the paper: {table.name}, {table.setting}",
        "",
        _legend(table, same=True),
        "",
        *markdown_table(["", *table.columns], rows),
        *remarks(table),
    ]


def remarks(table: Table) -> list[str]:
    """The lines below a table: its errata and notes."""
    return ["", *(f"- {remark}" for remark in table.remarks)] if table.remarks else []


def _title(row: str, label: str) -> str:
    """A printed row with our label for it; "" where we have none."""
    if not label:
        return row
    return label if label.startswith(row) else f"{row}: {label}"


def _legend(table: Table, *, same: bool) -> str:
    cells = [cell for row in table.rows.values() for cell in row]
    legible = "" if _NOT_LEGIBLE not in cells else f" {_NOT_LEGIBLE}: not legible in the copy at hand."
    errata = "" if not any(cell.endswith(_ERRATUM) for cell in cells) else f" \\{_ERRATUM}: see below."
    other = "" if same else " Ours are of another data set: the order of rows may be compared, the level not."
    return f"{NONE}: not printed, or not run here.{legible}{errata}{other}"


def _table(where: str, section: Mapping[str, Any]) -> Table:
    columns = tuple(section["columns"])
    rows = {name: [_cell(value) for value in values] for name, values in section["rows"].items()}
    for name, cells in rows.items():
        if len(cells) != len(columns):
            raise ValueError(f"{where}: {name} has {len(cells)} cells for {len(columns)} columns")
    found = []
    for erratum in section.get("errata", ()):
        row, marked = erratum["row"], erratum["columns"]
        if row not in rows or not {*marked} <= {*columns}:
            raise ValueError(f"{where}: an erratum names no cell: {row}, {marked}")
        for column in marked:
            rows[row][columns.index(column)] += _ERRATUM
        found.append(f"\\{_ERRATUM} {row}, {', '.join(marked)}: {erratum['note']}")
    return Table(
        section["table"],
        section["setting"],
        columns,
        {name: tuple(cells) for name, cells in rows.items()},
        (*found, *section.get("notes", ())),
        section.get("data", ""),
    )


def _cell(value: float | str | Sequence[float]) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return f"{value[0]:.1f} ± {value[1]:.1f}"
    return NONE if isnan(value) else f"{value:.1f}"
