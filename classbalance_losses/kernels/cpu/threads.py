"""Loops that numba compiles, shared out over the threads that torch's own functions run on.

They are torch's OpenMP threads, not numba's: those of a second pool would wait for a core on which, after a function of
torch's, the first pool's still spin. ``GOMP_parallel`` is found through torch's library, on Linux; GCC's and LLVM's
OpenMP both have it. Elsewhere, and where torch has no OpenMP, a loop starts threads of its own.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from numba.core.errors import NumbaError

_LIBRARY = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"


def failure(device: torch.device) -> str | None:
    """Why loops cannot run on a device, tried by running one; ``None`` if they can."""
    if device.type != "cpu":
        return f"they are loops on the CPU, and not on {device}"
    from classbalance_losses.kernels.cpu import probe  # noqa: PLC0415 - it needs `run`

    try:
        probe.run_one()
    except (NumbaError, ImportError, RuntimeError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def run(task: Any, job: Any) -> None:
    """Have every thread call a `math.Task` on the memory of ``job``.

    The job's first number, 0 at first, counts the parts that threads have taken: see `math.take`.
    """
    function = task.compiled
    address, threads, start = job.ctypes.data, torch.get_num_threads(), _openmp()
    if threads == 1:
        function.ctypes(address)
    elif start is not None:
        start(function.address, address, threads, 0)
    else:
        _on_own_threads(function.ctypes, address, threads)


def whose() -> str:
    """Say on whose threads the loops run."""
    return "its own" if _openmp() is None else "torch's OpenMP"


def _on_own_threads(call: Any, address: int, threads: int) -> None:
    """Have Python's threads call a function without the interpreter's lock; they end with the loop.

    A pool that stays would be without its threads in a forked process, and wait for them. Each thread takes parts until
    there are none, so one that starts late costs little.
    """
    with ThreadPoolExecutor(threads - 1) as others:  # whose end waits: they write to the job's memory
        for _ in range(threads - 1):
            others.submit(call, address)
        call(address)


@cache
def _openmp() -> Any:
    """Return ``void GOMP_parallel(void (*task)(void *), void *job, unsigned threads, unsigned flags)``."""
    try:
        start = ctypes.CDLL(str(_LIBRARY)).GOMP_parallel
    except (OSError, AttributeError):
        return None
    start.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    start.restype = None
    return start
