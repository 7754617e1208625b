"""Table 5 of SemiDAViL as printed, in `published.toml`, and beside a grid's own numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.common.config import read_toml
from examples.synapse_ssl.rows import Run, Setting, cell, label_of, pairs_of, rows_of, setting_of, table

PUBLISHED = Path(__file__).with_name("published.toml")


@dataclass(frozen=True)
class Scores:
    """15 numbers: mean Dice in percent, mean distance in voxels, Dice of each organ."""

    dsc: float
    asd: float
    per_organ: tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """A method of the table; `dyce` is None without a row with DyCE, `method` where it is not built here."""

    name: str
    kind: str
    method: str | None
    plain: Scores
    dyce: Scores | None
    printed_gain: Scores | None

    @property
    def all_labels(self) -> bool:
        """Whether the row was trained on every label: it is to stand beside such runs alone."""
        return self.kind == "Supervised"


@dataclass(frozen=True)
class Table5:
    """The table."""

    data: str
    source: str
    organs: tuple[str, ...]
    errata: tuple[str, ...]
    rows: tuple[Row, ...]

    def row_of(self, setting: Setting) -> Row | None:
        """The row that belongs to a setting of ours, where the table has one."""
        for row in self.rows:
            if row.method == setting.method and row.all_labels == setting.bound:
                return row
        return None


def read_published(path: Path = PUBLISHED) -> Table5:
    """The file's content.

    Raises:
        KeyError: a number is missing.
        ValueError: a row has not as many numbers as there are organs.
    """
    content = read_toml(path)
    organs = tuple(content["organs"])
    rows = []
    for entry in content["row"]:
        plain = _scores(entry, "dsc", "asd", "per_organ", len(organs))
        dyce = gain = None
        if "dsc_dyce" in entry:
            dyce = _scores(entry, "dsc_dyce", "asd_dyce", "per_organ_dyce", len(organs))
            names = ("printed_gain_dsc", "printed_gain_asd", "printed_gain_per_organ")
            gain = _scores(entry, *names, len(organs))
        rows.append(Row(entry["name"], entry["type"], entry.get("method"), plain, dyce, gain))
    return Table5(content["data"], content["source"], organs, tuple(content["errata"]), tuple(rows))


def _scores(entry: dict[str, Any], dsc: str, asd: str, per_organ: str, organs: int) -> Scores:
    if len(entry[per_organ]) != organs:
        raise ValueError(
            f"{entry['name']}: {per_organ} has {len(entry[per_organ])} numbers for {organs} organs"
        )
    return Scores(entry[dsc], entry[asd], tuple(entry[per_organ]))


def published_section(results: dict[str, Any]) -> list[str]:
    """Table 5 beside a grid's numbers: means and gains, and organ by organ where the organs are the table's."""
    published, runs = read_published(), results["runs"]
    here = sorted({run["data"] for run in runs})
    other = here != ["btcv"]
    lines = [
        f"## Published, {'on another data set' if other else 'by another pipeline'}: {published.data}",
        "",
        f"{published.source} Not comparable with the numbers of these runs. “–” is a row that the table does not have: "
        "V-Net and CPS have none with DyCE there, and V-Net is trained on all labels. Rows of the table that are not "
        f"built here: {_not_built(published)}.",
        "",
        "Gains are in points of Dice and voxels of distance, over the seeds that have both losses; less distance is "
        "better.",
        "",
        *_means(published, runs),
    ]
    if tuple(name.replace("_", " ") for name in results["classes"][1:]) == published.organs:
        lines += ["", "Dice of each organ, as printed and here:", "", *_organs(published, runs)]
    return [*lines, "", "Errata of that table:", "", *(f"- {text}" for text in published.errata)]


def _not_built(published: Table5) -> str:
    *names, last = (row.name for row in published.rows if row.method is None)
    return f"{', '.join(names)} and {last}"


def _means(published: Table5, runs: Sequence[Run]) -> list[str]:
    """A row for each method and budget of ours: the printed means, and what DyCE changes in both."""
    head = [
        "",
        "DSC",
        "DSC + DyCE",
        "printed gain",
        "gain here",
        "ASD",
        "ASD + DyCE",
        "printed gain",
        "gain here",
    ]
    rows = []
    for setting, budget in dict.fromkeys((setting_of(run), run["budget"]) for run in runs):
        row = published.row_of(setting)
        pairs = pairs_of([run for run in runs if (setting_of(run), run["budget"]) == (setting, budget)])
        cells = []
        for metric in ("dsc", "asd"):
            printed = [None, None, None] if row is None else [row.plain, row.dyce, row.printed_gain]
            forms = (".1f", ".1f", "+.1f")
            cells += [
                "–" if scores is None else f"{getattr(scores, metric):{form}}"
                for scores, form in zip(printed, forms, strict=True)
            ]
            changes = [
                dyce["scores"][metric] - plain["scores"][metric] for plain, dyce in pairs.get(setting, ())
            ]
            cells.append(cell(changes, "+.1f"))
        rows.append([setting.label if setting.bound else f"{setting.label}, {budget:.0%}", *cells])
    return table(head, rows)


def _organs(published: Table5, runs: Sequence[Run]) -> list[str]:
    """The table's rows in its order, each followed by ours; then those of ours that it does not have."""
    own = {
        budget: rows_of([run for run in runs if run["budget"] == budget])
        for budget in sorted({run["budget"] for run in runs})
    }
    lines: list[list[str]] = []
    for pixel in ("CE", "DyCE"):
        for row in published.rows:
            scores = row.plain if pixel == "CE" else row.dyce
            if scores is None:
                continue
            numbers = (scores.dsc, scores.asd, *scores.per_organ)
            name = row.name + (" + DyCE" if pixel == "DyCE" else "")
            lines.append([f"{name}, printed", *(f"{number:.1f}" for number in numbers)])
            if row.method is not None:
                key = Setting(row.method, row.all_labels), pixel
                lines += [_here(name, budget, rows.pop(key)) for budget, rows in own.items() if key in rows]
    for budget, rows in own.items():
        lines += [
            _here(label_of(*key), budget, entries, ", not in the table") for key, entries in rows.items()
        ]
    return table(["", "DSC", "ASD", *published.organs], lines)


def _here(name: str, budget: float, runs: Sequence[Run], remark: str = "") -> list[str]:
    scores = [run["scores"] for run in runs]
    columns = [[score[key] for score in scores] for key in ("dsc", "asd")]
    columns += [list(values) for values in zip(*(score["dsc_per_class"] for score in scores), strict=True)]
    return [f"{name}, here, {budget:.0%}{remark} ({len(scores)})", *(cell(column) for column in columns)]
