"""Runs side by side, each a process of its own with one thread, and one progress bar over all of their steps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from benchmarks.accuracy.grid import RunConfig
from benchmarks.accuracy.run import PROGRESS, is_finished, write_json

_ROOT = Path(__file__).parents[2]
_POLL_SECONDS = 0.5
_LOG_SECONDS = 30  # between two lines of progress in a log file
_OUTPUT = "output.txt"
# One thread a process is the fastest way to use a few cores: no step waits for another's barrier. The allocator's
# settings keep freed memory in the process, which saves a page fault for every page of every activation.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
}


class RunError(RuntimeError):
    """Some runs failed; the message holds the end of each one's output."""


def run_all(
    configs: Sequence[RunConfig],
    runs: Path,
    data_folder: Path | None,
    *,
    jobs: int = 2,
    progress: bool = True,
) -> None:
    """Carry out the runs that are not finished yet, `jobs` at a time, in the order given.

    Ctrl-C or SIGTERM (of `timeout`, say) stops the running ones after their step; calling this again goes on from
    there. A run that fails does not stop the others.

    Raises:
        RunError: when all are done, if some failed.
    """
    unique = {config.key: config for config in configs}
    waiting = [config for config in unique.values() if not is_finished(config, runs)]
    if not waiting:
        return
    total = sum(config.training["iterations"] for config in waiting)
    finished_steps = 0
    active: dict[subprocess.Popen[bytes], RunConfig] = {}
    failures: list[str] = []
    begun = sum(_steps(config, runs) for config in waiting)
    interval = _POLL_SECONDS if sys.stderr.isatty() else _LOG_SECONDS
    with (
        _interrupted_by_sigterm(),
        tqdm(total=total, initial=begun, unit="step", mininterval=interval, disable=not progress) as bar,
    ):
        try:
            while waiting or active:
                while waiting and len(active) < jobs:
                    config = waiting.pop(0)
                    active[_start(config, runs, data_folder)] = config
                time.sleep(_POLL_SECONDS)
                for process in [p for p in active if p.poll() is not None]:
                    config = active.pop(process)
                    finished_steps += config.training["iterations"]
                    if process.returncode:
                        failures.append(_failure(config, runs))
                bar.set_description(f"{len(active)} running, {len(waiting)} waiting", refresh=False)
                steps = finished_steps + sum(_steps(config, runs) for config in [*active.values(), *waiting])
                bar.update(steps - bar.n)
        finally:
            for process in active:
                process.terminate()  # a run saves itself on SIGTERM
            for process in active:
                process.wait()
    if failures:
        raise RunError("\n\n".join(failures))


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM as Ctrl-C: it would else end this process alone, and leave the runs without one who waits for them."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield
        return
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _start(config: RunConfig, runs: Path, data_folder: Path | None) -> subprocess.Popen[bytes]:
    folder = runs / config.folder_name
    write_json(folder / "config.json", config.as_dict())
    command = [sys.executable, "-m", "benchmarks.accuracy.run", str(folder / "config.json"), str(runs)]
    if data_folder is not None:
        command.append(str(data_folder.resolve()))
    command[3:] = [str(Path(part).resolve()) for part in command[3:]]
    with (folder / _OUTPUT).open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=_ROOT,
            env=os.environ | _ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends its runs in good order
        )


def _steps(config: RunConfig, runs: Path) -> int:
    path = runs / config.folder_name / PROGRESS
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):  # not begun yet, or just being written
        return 0


def _failure(config: RunConfig, runs: Path) -> str:
    path = runs / config.folder_name / _OUTPUT
    tail = "\n".join(path.read_text(errors="replace").splitlines()[-15:])
    return f"run {config.folder_name} failed; its output ({path}) ends:\n{tail}"
