"""The speed benchmark beside busy processes: who is busy, until when, and in which environment."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pytest_benchmark")
pytest.importorskip("matplotlib")

from benchmarks.speed import __main__ as command
from benchmarks.speed import bench_contention
from benchmarks.speed.case import measure
from benchmarks.speed.settings import Settings

QUICK = Settings(quick=True, seconds=0, warm_up=0, min_rounds=2)
# Begins busy processes, says which, and ends without a word to them.
ABANDON = """
import os
from benchmarks.speed.bench_contention import busy
with busy(2) as processes:
    print(*(process.pid for process in processes), flush=True)
    os._exit(0)
"""


def seconds_of(pid: int) -> float:
    """Processor time, in user mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / os.sysconf("SC_CLK_TCK")


def until(happened: Callable[[], bool]) -> bool:
    for _ in range(600):
        if happened():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
def test_processes_are_busy_and_then_gone() -> None:
    with bench_contention.busy(2) as processes:
        assert until(lambda: all(seconds_of(process.pid) > 0.2 for process in processes))
        assert [process.poll() for process in processes] == [None, None]
    assert all(process.poll() is not None for process in processes)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
def test_they_end_with_the_process_that_began_them() -> None:
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root}
    out = subprocess.run(
        [sys.executable, "-c", ABANDON], capture_output=True, text=True, check=True, env=environment, cwd=root
    ).stdout
    pids = out.split()
    assert len(pids) == 2
    assert until(lambda: not any(_runs(pid) for pid in pids))


def _runs(pid: str) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_cases_are_those_that_are_promised() -> None:
    cases = list(bench_contention.cases(Settings()))
    assert {case.axis for case in cases} == {"2×19×512×1024", "2×150×512×512", "8×11×180×240"}
    assert {case.task.name for case in cases} == {"cross-entropy", "focal", "DyCE", "GBW"}
    assert {case.rounds for case in cases} == {20}
    assert all(case.contender.origin in ("ours", "torch") for case in cases)
    assert {case.group for case in cases} == set(bench_contention.ENVIRONMENTS)
    assert not list(bench_contention.cases(Settings("cuda")))


def test_a_case_has_as_many_rounds_as_it_asks_for() -> None:
    case = next(bench_contention.cases(QUICK))
    asked: list[int] = []

    def pedantic(target: Callable[[], None], setup: Callable[[], None], rounds: int, iterations: int) -> None:
        asked.append(rounds)

    for rounds in (20, 0):
        measure(replace(case, rounds=rounds), QUICK, pedantic)
    assert asked == [20, QUICK.rounds(1e9)]


@pytest.mark.parametrize("group", [*bench_contention.ENVIRONMENTS, "pieces"])
def test_only_one_group_waits_passively(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, str] = {}

    def run(command: list[str], *, env: dict[str, str], **options: Any) -> Namespace:
        given.update(env)
        return Namespace(returncode=0)

    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(command.subprocess, "run", run)
    command.measure_group(group, 1.0, Namespace(device="cpu", seconds=0.0, quick=True))
    assert given.get("OMP_WAIT_POLICY") == ("passive" if group == "contention, passive" else None)


def test_a_case_is_measured_beside_them() -> None:
    """A whole run imports and compiles for minutes of a busy machine: `--quick --only contention` shows it."""
    (mark,) = bench_contention.bench_contention.pytestmark
    assert mark.args == ("_busy",)
