"""The rows of a grid's tables: which runs each has, what it is called, and what DyCE changes in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

Run = dict[str, Any]
NAMES = {
    "supervised": "supervised",
    "ua_mt": "UA-MT",
    "urpc": "URPC",
    "cps": "CPS",
    "depl": "DePL",
    "dhc": "DHC",
    "a_and_d": "A&D",
}


@dataclass(frozen=True)
class Setting:
    """One method under one label budget; `bound`: the supervised rows with all labels, above the others."""

    method: str
    bound: bool

    @property
    def label(self) -> str:
        """What tables and plots call it."""
        return NAMES.get(self.method, self.method) + (", all labels" if self.bound else "")


def setting_of(run: Run) -> Setting:
    """Whose run it is."""
    return Setting(run["method"], run["bound"])


def label_of(setting: Setting, pixel: str) -> str:
    """A row's name: the method, and DyCE where it is used."""
    return setting.label + (" + DyCE" if pixel == "DyCE" else "")


def budgets_of(results: dict[str, Any]) -> list[float]:
    """The label budgets of a grid's finished runs, each a table of its own; the bounds' where nothing else is there."""
    runs = results["runs"]
    return sorted({run["budget"] for run in runs if not run["bound"]} or {run["budget"] for run in runs})


def runs_at(results: dict[str, Any], budget: float) -> list[Run]:
    """The runs of one budget's table: the bounds first."""
    runs = results["runs"]
    return [run for run in runs if run["bound"]] + [
        run for run in runs if run["budget"] == budget and not run["bound"]
    ]


def rows_of(runs: Sequence[Run]) -> dict[tuple[Setting, str], list[Run]]:
    """The runs of each row, a setting and a pixel loss, in their order."""
    rows: dict[tuple[Setting, str], list[Run]] = {}
    for run in runs:
        rows.setdefault((setting_of(run), run["pixel"]), []).append(run)
    return rows


def pairs_of(runs: Sequence[Run]) -> dict[Setting, list[tuple[Run, Run]]]:
    """(CE, DyCE) of each setting, of the seeds that have both; no setting without a pair."""
    rows, pairs = rows_of(runs), {}
    for setting in dict.fromkeys(setting for setting, _ in rows):
        plain, dyce = (
            {run["seed"]: run for run in rows.get((setting, pixel), ())} for pixel in ("CE", "DyCE")
        )
        if both := sorted(plain.keys() & dyce.keys()):
            pairs[setting] = [(plain[seed], dyce[seed]) for seed in both]
    return pairs


def gains(pairs: Sequence[tuple[Run, Run]], key: str) -> list[list[float]]:
    """What DyCE adds to a score of each class: for each class a number a pair.

    A class without a score in a run has none of that pair; where a run did not record the score at all, no class has
    any, so that no mean is of fewer seeds than the others beside it.

    Args:
        pairs: of one setting.
        key: of the score: "dsc", "recall" or "asd".
    """
    classes, name = len(pairs[0][0]["class_share"]) - 1, f"{key}_per_class"
    columns: list[list[float]] = [[] for _ in range(classes)]
    if all(name in run["scores"] for pair in pairs for run in pair):
        for plain, dyce in pairs:
            both = zip(columns, plain["scores"][name], dyce["scores"][name], strict=True)
            for column, before, after in both:
                if before is not None and after is not None:
                    column.append(after - before)
    return columns


def shares(pairs: Sequence[tuple[Run, Run]]) -> list[float]:
    """Each class's share of the labelled foreground voxels, the background left out."""
    _, *foreground = pairs[0][0]["class_share"]
    return [share / sum(foreground) for share in foreground]


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation, over n - 1 (GenericSSL's is over n); the latter 0 for one value."""
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def cell(values: Sequence[float], form: str = ".1f") -> str:
    """Mean ± standard deviation over seeds, which one seed does not have; a dash where no run recorded it."""
    if not values:
        return "–"
    center, deviation = spread(values)
    return f"{center:{form}} ± {deviation:.1f}" if len(values) > 1 else f"{center:{form}}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, all columns but the first to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
