"""`python -m benchmarks.speed run` measures, `report` writes the page from what was measured."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from benchmarks.speed.bench_contention import ENVIRONMENTS
from benchmarks.speed.case import Case
from benchmarks.speed.machine import ROOT, copy_bandwidth, describe, measured_commit
from benchmarks.speed.report import write_report
from benchmarks.speed.results import FILE, Entry, Results, read_results
from benchmarks.speed.settings import Settings

HERE = Path(__file__).parent
RESULTS = ROOT / "benchmarks" / "results"
TRIALS = ROOT / "runs" / "speed-quick"  # not under version control
_QUIET = {"KINETO_LOG_LEVEL": "99"}  # the profiler that counts memory announces every start and stop


def all_cases(settings: Settings) -> Iterator[Case]:
    """The cases of every `bench_*.py`; the per-pixel losses come first."""
    names = sorted(path.stem for path in HERE.glob("bench_*.py"))
    for name in sorted(names, key=lambda name: name != "bench_pixel"):
        yield from import_module(f"benchmarks.speed.{name}").cases(settings)


def groups_of(settings: Settings) -> list[str]:
    """The names of the groups, in the order in which they run."""
    return list(dict.fromkeys(case.group for case in all_cases(settings)))


def run(options: argparse.Namespace) -> int:
    """Measure every group that the result file lacks at this commit; write the page after each."""
    machine = describe(options.device)
    folder = options.out / machine["slug"]
    commit = measured_commit()
    bandwidth = copy_bandwidth(options.device, quick=options.quick)
    print(f"{machine['name']}: a copy moves {bandwidth / 1e9:.1f} GB/s", flush=True)
    known = read_results(folder)
    results = Results(machine, bandwidth, known.groups if known else {})
    groups = groups_of(Settings(options.device, options.quick))
    wanted = [group for group in groups if options.only in (None, group)]
    started, status = time.monotonic(), 0
    for number, group in enumerate(wanted, 1):
        head = f"[{number}/{len(wanted)}, {time.monotonic() - started:.0f} s] {group}"
        if not options.again and results.done(group, commit):
            print(f"{head}: measured at {commit} already", flush=True)
            continue
        print(head, flush=True)
        code, entries = measure_group(group, bandwidth, options)
        status = status or code
        if entries:
            results.put(group, commit, entries)
            results.groups = {name: results.groups[name] for name in groups if name in results.groups}
            results.write(folder)
    print(f"{time.monotonic() - started:.0f} s; {write_report(folder)}")
    return status


def measure_group(group: str, bandwidth: float, options: argparse.Namespace) -> tuple[int, list[Entry]]:
    """Run pytest-benchmark on one group in a process of its own; return its exit code and the entries."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "benchmark.json"
        command = [
            *(
                sys.executable,
                "-m",
                "pytest",
                str(HERE),
                "-q",
                "--no-header",
                "--no-summary",
                "-W",
                "default",
            ),
            *("-o", "python_files=bench_*.py", "-o", "python_functions=bench_*", "-p", "no:cacheprovider"),
            *("--disable-warnings", "--benchmark-only", "--benchmark-quiet", f"--benchmark-json={path}"),
            *("--speed-group", group, "--speed-device", options.device),
            *("--speed-seconds", str(options.seconds), "--speed-bandwidth", str(bandwidth)),
            *(["--speed-quick"] if options.quick else []),
        ]
        # Where the suite itself runs under pytest-xdist, its variables would switch the benchmark off here.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        environment = _QUIET | environment | ENVIRONMENTS.get(group, {})
        code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        entries = json.loads(path.read_text())["speed"] if path.is_file() else []
    return code, [Entry(**entry) for entry in entries]


def report(options: argparse.Namespace) -> int:
    """Write the page of every machine under the folder."""
    for path in sorted(options.out.glob(f"*/{FILE}")):
        print(write_report(path.parent))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    main.add_argument("action", choices=("run", "report"))
    main.add_argument("--out", type=Path, help="the folder of the machines' folders")
    main.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    main.add_argument(
        "--quick", action="store_true", help="tiny sizes: shows that all works, times mean nothing"
    )
    main.add_argument("--seconds", type=float, default=Settings.seconds, help="timed rounds of one contender")
    main.add_argument(
        "--only", metavar="GROUP", help="this group alone, such as pieces, binary, overlap, soft or upsample"
    )
    main.add_argument("--again", action="store_true", help="measure groups that are done once more")
    return main


if __name__ == "__main__":
    arguments = parser().parse_args()
    arguments.out = arguments.out or (TRIALS if arguments.quick else RESULTS)
    sys.exit({"run": run, "report": report}[arguments.action](arguments))
