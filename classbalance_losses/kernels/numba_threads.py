"""Loops that numba compiles, shared out over the threads that torch's own functions run on.

They are torch's OpenMP threads, not numba's: those of a second pool would wait for a core on which, after a function of
torch's, the first pool's still spin. ``GOMP_parallel`` is found through torch's library, on Linux; GCC's and LLVM's
OpenMP both have it.
"""

from __future__ import annotations

import ctypes
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_LIBRARY = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"

MAY_COMPILE = find_spec("numba") is not None and _LIBRARY.exists()


@cache
def can_compile() -> bool:
    """Whether numba is here, and works, which a loop tries once, and torch's threads can be had."""
    if not MAY_COMPILE or _openmp() is None:
        return False
    failure = _failure()
    if failure is not None:
        warnings.warn(
            f"numba is installed and does not work, so the losses run in functions of torch's, which is slower: "
            f"{failure}. Update numba and numpy together (pip install -U numba numpy), or uninstall numba.",
            stacklevel=2,
        )
    return failure is None


def _failure() -> str | None:
    """Compile the loops over maps, run one, and return what went wrong; ``None`` if nothing did."""
    try:
        import numba  # noqa: PLC0415 - an optional dependency, slow to import
    except ImportError as error:
        return f"{type(error).__name__}: {error}"
    try:
        from classbalance_losses.kernels import numba_maps  # noqa: PLC0415 - the same

        numba_maps.count(torch.ones(1, dtype=torch.bool, device="cpu"))
    except (numba.core.errors.NumbaError, ImportError, RuntimeError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def takes(input: Tensor, *, as_it_is: bool) -> bool:
    """Whether the loops can go over the logits: float32 or bfloat16, an image's pixels side by side in memory.

    ``as_it_is``: in the layout that ``input`` has; else in blocks, as a layout makes them.
    """
    if not as_it_is:
        return input.dtype != torch.float64
    if input.dtype not in (torch.float32, torch.bfloat16):
        return False
    if input.ndim == 2:
        return input.stride(0) == 1
    return input.is_contiguous() or (input.stride(-1) == 1 and input.shape[-1] > 1)


def run(task: Any, job: Any) -> None:
    """Have every thread call a compiled ``task``, a ``cfunc`` of one pointer, on the memory of ``job``.

    The job's first number, 0 at first, counts the parts that threads have taken: see `numba_math.take`.
    """
    address, threads, start = job.ctypes.data, torch.get_num_threads(), _openmp()
    if threads == 1 or start is None:
        task.ctypes(address)
    else:
        start(task.address, address, threads, 0)


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
