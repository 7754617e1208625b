"""Pairs of rows of a grid, without and with the method that its paper is about, read from committed result files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class Line:
    """One comparison; both sides map a seed to a score in percent."""

    setting: str
    without: Mapping[int, float]
    having: Mapping[int, float]

    def cells(self) -> list[str]:
        """Setting, both means, and the gain of the seeds that both sides have."""
        gains = [self.having[seed] - self.without[seed] for seed in self.without if seed in self.having]
        return [
            self.setting,
            _spread(self.without),
            _spread(self.having),
            f"{mean(gains):+.1f} ({len(gains)})",
        ]


def semidavil() -> list[Line]:
    """Streets → CamVid with some labels of CamVid: cross-entropy and DyCE in the whole pipeline."""
    rows = _read("semidavil/camvid_components")["rows"]
    without, having = rows["CT + VLP + DLG"], rows["CT + DyCE + VLP + DLG"]
    return [
        Line(f"{budget} labels of CamVid", _miou(without[budget]), _miou(having[budget]))
        for budget in without
        if without[budget] and having[budget]
    ]


def organs(name: str, data: str) -> list[Line]:
    """ACDC or CHAOS: every method with cross-entropy and with DyCE, mean Dice; without the bounds with all labels."""
    runs = [run for run in _read(f"synapse_ssl/{name}")["runs"] if not run["bound"]]
    lines = []
    for method in dict.fromkeys(run["method"] for run in runs):
        sides = [
            {
                run["seed"]: float(run["scores"]["dsc"])
                for run in runs
                if (run["method"], run["pixel"]) == (method, pixel)
            }
            for pixel in ("CE", "DyCE")
        ]
        name = method if method == "supervised" else method.replace("_", "-").upper()
        lines.append(Line(f"{data}, {name}", *sides))
    return lines


def adaptation() -> list[Line]:
    """Streets → CamVid without its labels: every method with unweighted losses and with GBW."""
    rows = _read("uda_gbw/table1")["rows"]
    return [
        Line(name, _miou(row["CE"]), _miou(row["GBW"]))
        for name, row in rows.items()
        if row["CE"] and row["GBW"]
    ]


def pull() -> list[Line]:
    """Streets → CamVid without its labels: self-training alone, and with the pull loss."""
    rows = _read("t2s_da/camvid_parts")["rows"]
    return [Line("DACS", _miou(rows["no pull loss"]), _miou(rows["T2S-DA"]))]


def vision_language() -> list[Line]:
    """CamVid with 30 labels: the pipeline without HVL's losses, and with all of them."""
    rows = _read("hvl/camvid_losses")["rows"]
    return [
        Line("30 labels of CamVid", _miou(rows["L_seg and consistency alone"]), _miou(rows["all losses"]))
    ]


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return content


def _miou(runs: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    return {run["seed"]: 100 * run["scores"]["val_alt"]["mean_iou"]["mIoU11"] for run in runs}


def _spread(side: Mapping[int, float]) -> str:
    values = list(side.values())
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"
