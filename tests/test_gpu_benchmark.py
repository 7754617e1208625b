"""The steps of `benchmarks.gpu`, as far as they go without a GPU, at tiny sizes. No times."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import answers as module
from benchmarks.gpu.cases import BASELINE, MAIN, QUICK, SETTINGS, contenders
from benchmarks.gpu.plan import PLANS, Step
from benchmarks.gpu.report import report, summary
from benchmarks.gpu.targets import SMALL, steps


def test_steps_write_what_the_page_shows(tmp_path: Path) -> None:
    for name in ("machine", "answers", "timings", "large"):
        command.one_step(name, tmp_path, "cpu", quick=True)
    for row in json.loads((tmp_path / "answers.json").read_text()):
        assert max(row["value_error"], row["gradient_error"]) < 1e-6, row
    (row,) = json.loads((tmp_path / "large.json").read_text())
    assert row["value_error"] < 1e-6
    page = report(tmp_path, tmp_path / "page").read_text()
    for setting in QUICK:
        assert page.count(str(setting)) == 1 + len(contenders(setting))
    assert BASELINE in page


def test_the_summary_is_of_times_in_a_graph(tmp_path: Path) -> None:
    row = {"setting": str(MAIN), "loss": BASELINE, "graph_us": 400.0, "host_us": 200.0}
    rows = [
        row,
        row | {"loss": "DyCE", "graph_us": 100.0, "host_us": 500.0},
        row | {"loss": "GBW", "error": "x"},
    ]
    machine = {"machine": {"name": "a GPU", "torch": "2"}, "triton": "3", "commit": "c"}
    for name, content in {"timings": rows, "machine": machine}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (line,) = [line for line in summary(tmp_path).splitlines() if line.startswith("| 2×19")]
    assert [cell.strip() for cell in line.split("|")[2:-1]] == ["400", "–", "–", "1.00", "0.25"]
    assert "DyCE 2.50" in summary(tmp_path)


def test_a_wrong_answer_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process: of a loss that is off by a factor in float32 alone."""

    def off(setting: object) -> dict[str, object]:
        return {"half": lambda: lambda x, y: x.sum() * (0.5 if x.dtype.itemsize < 8 else 1)}

    monkeypatch.setattr(module, "contenders", off)
    row = module._row(QUICK[0], "half", "cpu")
    assert row["value_error"] == pytest.approx(0.5)


def test_each_step_is_stopped_in_time_and_the_next_runs(tmp_path: Path) -> None:
    plan = (
        Step("slow", 1, (sys.executable, "-c", "import time; print('here', flush=True); time.sleep(60)")),
        Step("absent", 5, ("no-such-tool",)),
        Step("last", 20, (sys.executable, "-c", "raise SystemExit(3)"), needed=True),
        Step("never", 5, (sys.executable, "-c", "")),
    )
    words = {"python": sys.executable, "device": "cuda"}
    assert command.carry_out(plan, words, tmp_path) == 127
    done = json.loads((tmp_path / "steps.json").read_text())
    assert [(entry["step"], entry["code"]) for entry in done] == [("slow", 124), ("absent", 127), ("last", 3)]
    assert "here" in (tmp_path / "slow.log").read_text()


def test_commands_are_whole_and_short() -> None:
    words = dict.fromkeys(("python", "out", "device", "data", "quick"), "x")
    for plan in PLANS.values():
        assert sum(step.limit for step in plan) <= 8 * 60
        for step in plan:
            assert all(part.format(**words) for part in step.command)
    assert MAIN in SETTINGS
    assert "GBW official" in contenders(MAIN)


def test_what_the_memory_checker_runs() -> None:
    steps(SMALL, "cpu")
