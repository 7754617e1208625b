"""pytest's side of the benchmark: options, cases, one line of progress a case, and the untimed cases in the JSON."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.speed.case import Case, measure
from benchmarks.speed.results import Entry
from benchmarks.speed.settings import Settings
from benchmarks.speed.table import progress_line

PROGRESS = "progress"
ENTRIES = pytest.StashKey[list[Entry]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("speed")
    group.addoption("--speed-device", default="cpu", choices=("cpu", "cuda"))
    group.addoption("--speed-quick", action="store_true", help="tiny sizes")
    group.addoption("--speed-bandwidth", type=float, help="of a copy, in bytes a second, to give shares of")
    group.addoption("--speed-group", help="only the cases of this group")
    group.addoption(
        "--speed-seconds", type=float, default=Settings.seconds, help="a contender's timed rounds"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ENTRIES] = []


def settings_of(config: pytest.Config) -> Settings:
    quick, seconds = config.getoption("--speed-quick"), config.getoption("--speed-seconds")
    if quick:
        return Settings(config.getoption("--speed-device"), True, seconds=0, warm_up=0, min_rounds=2)
    return Settings(config.getoption("--speed-device"), seconds=seconds)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        group = metafunc.config.getoption("--speed-group")
        cases = [
            case
            for case in metafunc.module.cases(settings_of(metafunc.config))
            if group is None or case.group == group
        ]
        metafunc.parametrize("case", cases, ids=str)


@pytest.fixture
def run_case(benchmark: Any, request: pytest.FixtureRequest) -> Any:
    """Return a function that measures a case and reports it."""

    def run(case: Case) -> None:
        benchmark.group = f"{case.axis} {case.dtype} {case.task.name}"
        bandwidth = request.config.getoption("--speed-bandwidth")
        entry = measure(case, settings_of(request.config), benchmark.pedantic)
        request.config.stash[ENTRIES].append(entry)
        request.node.user_properties.append((PROGRESS, progress_line(entry, bandwidth)))
        if entry.timed:
            low, middle, high = entry.ratio
            benchmark.extra_info.update(ratio=middle, ratio_iqr=high - low, kept=entry.kept, peak=entry.peak)
        elif entry.origin == "ours" and entry.status != "skipped":
            pytest.fail(f"{case}: {entry.status}: {entry.reason}", pytrace=False)
        else:
            pytest.skip(f"{entry.status}: {entry.reason}")

    return run


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Put every case's entry beside pytest-benchmark's own statistics."""
    output_json["speed"] = [entry.as_dict() for entry in config.stash[ENTRIES]]


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """A line a case in the place of a dot."""
    if report.when != "call":
        return None
    line = dict(report.user_properties).get(PROGRESS, report.nodeid)
    return report.outcome, f"{line}\n", ""
