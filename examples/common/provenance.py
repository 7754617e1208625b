"""Where a result comes from: commit, versions, device, and what it cost."""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import classbalance_losses


def commit() -> str:
    """The commit that the code is at, with "+changes" where files differ from it; "unknown" outside a checkout.

    The environment variable CLASSBALANCE_COMMIT names it where the code was unpacked from an archive.
    """
    if named := os.environ.get("CLASSBALANCE_COMMIT"):
        return named
    root = Path(__file__).parents[2]
    command = [
        "git",
        "-C",
        str(root),
        "describe",
        "--always",
        "--abbrev=12",
        "--dirty=+changes",
        "--exclude=*",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions() -> dict[str, str]:
    """Of Python, torch and the library."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "classbalance_losses": classbalance_losses.__version__,
    }


def device_name(device: torch.device) -> str:
    """The name of the GPU, or the processor's as the system gives it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    found = info.is_file() and re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
    return " ".join(found[1].split()) if found else platform.processor() or platform.machine()


def cuda_entry(device: torch.device) -> dict[str, Any]:
    """What else decides the numbers of a GPU: CUDA, cuDNN, and where float32 is multiplied as TF32; {} for a CPU."""
    if device.type != "cuda":
        return {}
    tf32 = {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32}
    return {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "tf32": tf32}


def peak_memory_mib(device: torch.device) -> float:
    """The most memory that this process used so far, in MiB: of the GPU, or of the machine for a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


class Stopwatch:
    """Seconds of work on a device, which it waits for when it is read; pauses do not count.

    Args:
        device: whose work is timed.
        seconds: to go on from.
    """

    def __init__(self, device: torch.device, seconds: float = 0.0) -> None:
        self._device, self._total, self._started = device, seconds, time.perf_counter()

    def seconds(self) -> float:
        """All seconds until now."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self._total, self._started = self._total + now - self._started, now
        return self._total

    def go_on(self) -> None:
        """Forget the time since the last reading: it was a pause."""
        self._started = time.perf_counter()


def provenance(device: torch.device, seconds: float, ranks: int) -> dict[str, Any]:
    """Plain data for a result file. `seconds` is what training took, `ranks` how many processes trained."""
    return {
        "commit": commit(),
        "versions": versions(),
        "seconds": round(seconds, 1),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "ranks": ranks,
        "peak_memory_mib": round(peak_memory_mib(device), 1),
    }
