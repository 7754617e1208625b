"""The page of a machine: what the steps found, as tables. `python -m benchmarks.gpu.report FOLDER OUT`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.cases import BASELINE, MAIN, SHOWN
from benchmarks.speed.table import number, table

FILES = ("machine", "answers", "timings", "large")
_KERNELS = 20  # of a step's, the dearest


def report(found: Path, out: Path) -> Path:
    """Keep the steps' files under ``out`` and write the page beside them."""
    out.mkdir(parents=True, exist_ok=True)
    steps = read(found)
    for name, content in steps.items():
        (out / f"{name}.json").write_text(
            json.dumps(_short(content)).replace('{"setting"', '\n{"setting"') + "\n"
        )
    page = out / "README.md"
    page.write_text("\n\n".join(_page(steps)) + "\n")
    return page


def read(folder: Path) -> dict[str, Any]:
    """Return what the steps found, by their names."""
    return {
        name: json.loads(path.read_text()) for name in FILES if (path := folder / f"{name}.json").is_file()
    }


def summary(folder: Path) -> str:
    """The main times over torch's cross-entropy, for the page of the documentation."""
    steps = read(folder)
    machine, rows = steps["machine"], steps["timings"]
    time = _by_setting(rows)
    body = []
    for setting in dict.fromkeys(row["setting"] for row in rows):
        if base := time.get((setting, BASELINE)):
            ratios = [_ratio(time.get((setting, name)), base, "graph_us") for name in SHOWN]
            body.append([setting, number(base["graph_us"]), *ratios])
    main = {name: time.get((str(MAIN), name)) for name in (BASELINE, *SHOWN)}
    base = main.pop(BASELINE) or {}
    hosts = ", ".join(f"{name} {_ratio(row, base, 'host_us')}" for name, row in main.items())
    about = machine["machine"]
    return "\n\n".join(
        [
            f"{about['name']}, torch {about['torch']}, Triton {machine['triton']}, commit {machine['commit']}. "
            "The device's time of a forward and a backward pass, replayed as a CUDA graph, over `F.cross_entropy`'s "
            "(with `→`: over `F.interpolate`'s and its).",
            table(["logits", f"`{BASELINE}`, µs", *SHOWN], body),
            "Without a graph the host hands a step over launch by launch, and where it is not ahead of the device, "
            f"the step takes as long as that. At {MAIN}, over `{BASELINE}`'s {number(base['host_us'])} µs: {hosts}. "
            f"Every number: `benchmarks/results/{folder.name}/README.md`.",
        ]
    )


def main_ratios(folder: Path) -> tuple[str, dict[str, str]]:
    """The machine and the commit, and the main times by loss, for a line of the project's README."""
    steps = read(folder)
    machine, time = steps["machine"], _by_setting(steps["timings"])
    base = time[str(MAIN), BASELINE]
    ratios = {name: _ratio(time.get((str(MAIN), name)), base, "graph_us") for name in SHOWN}
    return f"{machine['machine']['name']}, device time, commit {machine['commit']}", ratios


def _by_setting(rows: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["setting"], row["loss"]): row for row in rows if "graph_us" in row}


def _ratio(row: dict[str, Any] | None, base: dict[str, Any], name: str) -> str:
    return "–" if row is None else number(row[name] / base[name])


def _short(content: Any) -> Any:
    """Four digits of each number, and a step's dearest kernels."""
    if isinstance(content, float):
        return float(f"{content:.4g}")
    if isinstance(content, list):
        return [_short(item) for item in content]
    if isinstance(content, dict):
        return {k: _short(v[:_KERNELS] if k == "kernels" else v) for k, v in content.items()}
    return content


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
