"""The page of a machine: what the steps found, as tables. `python -m benchmarks.gpu.report FOLDER OUT`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.speed.table import number, table

FILES = ("machine", "answers", "timings", "large")


def report(found: Path, out: Path) -> Path:
    """Keep the steps' files under ``out`` and write the page beside them."""
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if found != out and (found / f"{name}.json").is_file():
            shutil.copy(found / f"{name}.json", out / f"{name}.json")
    steps = {name: json.loads(path.read_text()) for name in FILES if (path := out / f"{name}.json").is_file()}
    page = out / "README.md"
    page.write_text("\n\n".join(_page(steps)) + "\n")
    return page


def _page(steps: dict[str, Any]) -> list[str]:
    machine = steps["machine"]
    about, copy = machine["machine"], machine["bandwidth"]
    parts = [
        f"# {about['name']}",
        f"torch {about['torch']}, CUDA {about['cuda']}, Triton {machine['triton']}, Python {about['python']}; commit "
        f"{machine['commit']}. A copy moves {copy / 1e12:.2f} TB/s, reading and writing counted. Written by "
        "`benchmarks/gpu`, which says what each column means.",
    ]
    if "timings" in steps:
        parts += ["## Time", *_timings(steps["timings"], copy)]
    if "answers" in steps:
        parts += ["## Against float64", _answers(steps["answers"])]
    if "large" in steps:
        parts += ["## More than 2³¹ bytes, and logits", _large(steps["large"])]
    return parts


def _timings(rows: list[dict[str, Any]], copy: float) -> list[str]:
    header = [
        "loss", "launches", "kernels, µs", "in a graph, µs", "in a row, µs", "alone, µs", "host, µs",
        "of copy", "kept", "peak",
    ]  # fmt: skip
    parts = []
    for setting in dict.fromkeys(row["setting"] for row in rows):
        here = [row for row in rows if row["setting"] == setting]
        parts += [f"{setting}", table(header, [_timing(row, copy) for row in here])]
    return parts


def _timing(row: dict[str, Any], copy: float) -> list[str]:
    if "error" in row:
        return [row["loss"], row["error"].splitlines()[0][:60], *["–"] * 8]

    def cell(name: str) -> str:
        return number(row[name]) if name in row else "–"

    best = row.get("graph_us", row.get("busy_us"))
    share = f"{100 * row['least_bytes'] / copy / (best * 1e-6):.0f} %" if best else "–"
    times = [cell(name) for name in ("busy_us", "graph_us", "in_a_row_us", "alone_us", "host_us")]
    return [row["loss"], f"{row.get('launches', 0):.0f}", *times, share, cell("kept"), cell("peak")]


def _answers(rows: list[dict[str, Any]]) -> str:
    body = [
        [row["setting"], row["loss"], row["error"].splitlines()[0][:60], "–"]
        if "error" in row
        else [row["setting"], row["loss"], f"{row['value_error']:.0e}", f"{row['gradient_error']:.0e}"]
        for row in rows
    ]
    return table(["setting", "loss", "value", "gradient"], sorted(body))


def _large(rows: list[dict[str, Any]]) -> str:
    body = [
        [
            f"{row['logits']:.3g}",
            row["dtype"],
            f"{row['value_error']:.0e}",
            number(row["gradient_error_in_eps_over_pixels"]),
        ]
        for row in rows
    ]
    return table(["logits", "dtype", "value off by", "gradient off by, ε / pixels"], body)


if __name__ == "__main__":
    print(report(Path(sys.argv[1]), Path(sys.argv[2])))
