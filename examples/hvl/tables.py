"""The paper's tables with our runs in them: means beside the printed ones, or the IoU of each class below them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from examples.common.cells import Run, overall
from examples.common.markdown import spread
from examples.common.published import Table, above, beside
from examples.hvl.data.voc import PRINTED


def paper_sections(
    results: Mapping[str, Any], published: Mapping[str, Table], test: str, main: str
) -> list[str]:
    """The lines of a section for each table that the results name.

    A table whose columns are classes gets a row for each of ours, if it is of the same data. In others our means stand
    at the column that the results name, if a row of ours is among theirs.

    Args:
        results: of a grid; see `collect`.
        published: the tables by their keys.
        test: the set that is scored.
        main: the name of the mean.
    """
    lines = []
    for table in (published[key] for key in results["published"]):
        same = table.data == results["kind"]
        lines += [""]
        if {*PRINTED.values()} <= {*table.columns}:
            lines += above(table, _classes(results["rows"], test) if same else {})
            continue
        ours = {label: [overall(runs, test, main)] for label, runs in results["rows"].items()}
        shared = {*ours} & {*table.rows}
        lines += beside(table, [results["column"]] if shared else [], ours if shared else {}, same=same)
    return lines


def _classes(rows: Mapping[str, Sequence[Run]], test: str) -> dict[str, dict[str, str]]:
    """{row: {printed heading: IoU over the seeds}} of the rows that have runs."""
    return {label: _printed(runs, test) for label, runs in rows.items() if runs}


def _printed(runs: Sequence[Run], test: str) -> dict[str, str]:
    scores = [run["scores"][test]["iou"] for run in runs]
    return {PRINTED[name]: spread([iou[c] for iou in scores]) for c, name in enumerate(runs[0]["classes"])}
