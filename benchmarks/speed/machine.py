"""What the numbers were measured on: processor, versions, commit, and the bandwidth of a plain copy."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.measure import clock_of, quartiles
from benchmarks.speed.peers import PACKAGES, installed
from benchmarks.speed.results import CHANGED
from classbalance_losses import WeightedCrossEntropyLoss, __version__, use_backend

ROOT = Path(__file__).parents[2]
MEASURED = ("classbalance_losses", "benchmarks/speed")  # what a result depends on
_COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}


def describe(device: str) -> dict[str, Any]:
    """Return the machine's name, its processor, and the versions of everything that takes part."""
    threads = torch.get_num_threads()
    cpu = cpu_model()
    name = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"CPU, {threads} thread{'s' * (threads > 1)}, {cpu}"
    )
    versions = {PACKAGES[peer]: installed(peer) for peer in PACKAGES}
    return {
        "slug": slug(name),
        "name": name,
        "device": device,
        "cpu": cpu,
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numba": _numba(),
        "cuda": torch.version.cuda if device == "cuda" else None,
        "classbalance_losses": __version__,
        "peers": versions,
    }


def _numba() -> str | None:
    """The version, where the loops run."""
    with use_backend("cpu"):
        try:
            WeightedCrossEntropyLoss()(torch.zeros(1, 2, 4), torch.zeros(1, 4, dtype=torch.int64))
        except ValueError:
            return None
    return version("numba")


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        if found:
            return " ".join(found[1].split())
    return platform.processor() or platform.machine()


def slug(name: str) -> str:
    """Lower-case words with hyphens, fit for a folder's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def copy_bandwidth(device: str, *, quick: bool = False, rounds: int = 10) -> float:
    """Bytes a second that a copy moves, reading and writing counted: the median of some rounds."""
    size = 1 << 20 if quick else _COPY_BYTES[device]
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    seconds = []
    for _ in range(rounds):
        clock = clock_of(device)
        clock.mark()
        target.copy_(source)
        clock.mark()
        seconds += clock.seconds()
    return 2 * source.nbytes / quartiles(seconds)[1]


def measured_commit() -> str:
    """The commit that last changed what is measured, marked where files differ from it; or "unknown".

    Outside a checkout the variable CLASSBALANCE_COMMIT may name it.
    """
    if named := os.environ.get("CLASSBALANCE_COMMIT"):
        return named
    try:
        commit = _git("log", "-1", "--abbrev=12", "--format=%h", "--", *MEASURED)
        changes = _git("status", "--porcelain", "--", *MEASURED)
    except (OSError, subprocess.CalledProcessError):
        return f"unknown{CHANGED}"
    return f"{commit or 'unknown'}{CHANGED if changes or not commit else ''}"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
