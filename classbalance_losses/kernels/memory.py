"""Memory for a large gradient on a CPU."""

from __future__ import annotations

import ctypes
import mmap
import sys
import time

import torch
from torch import Tensor

_SMALLEST = 1 << 22  # bytes: two huge pages, below which advice is not worth a system call
_HUGE = 1 << 21  # bytes of a huge page
_DEAR = 1e-3  # seconds for a huge page: what 512 small ones take


def empty_like(input: Tensor, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
    """Return uninitialised memory, as ``torch.empty_like`` does, that asks Linux for huge pages.

    A large tensor is fresh memory at every step, and the kernel hands it over page by page at the first write:
    with pages of 4 KiB that can take longer than the arithmetic of a backward pass. It is advice: where the system
    has no huge pages, or gives them anyway, nothing changes. (``THP_MEM_ALLOC_ENABLE=1`` has torch ask so for every
    tensor.)

    A virtual machine may have handed free memory back to its host. A huge page of that costs more than small
    pages, which the kernel takes from memory in use; so the advice is withdrawn where the first ones are dear.
    """
    empty = torch.empty_like(input, memory_format=memory_format)
    size = empty.numel() * empty.element_size()
    if size >= _SMALLEST and sys.platform == "linux":
        start = -(-empty.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (empty.data_ptr() + size - start) // mmap.PAGESIZE * mmap.PAGESIZE
        _madvise(start, length, mmap.MADV_HUGEPAGE)
        if _seconds_of_a_page(start, start + length) > _DEAR:
            _madvise(start, length, mmap.MADV_NOHUGEPAGE)
    return empty


def _seconds_of_a_page(start: int, end: int) -> float:
    """Return how long the first write to a huge page took, the quicker of two: a thread may lose its turn in one."""
    first = -(-start // _HUGE) * _HUGE
    return min(_write(place) for place in range(first, min(first + 2 * _HUGE, end), _HUGE))


def _write(address: int) -> float:
    before = time.perf_counter()
    ctypes.memset(address, 0, 1)
    return time.perf_counter() - before


def _madvise(start: int, length: int, advice: int) -> int:
    """Call the C library's madvise; Python's own works on its mmap objects alone. A refusal is no error."""
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return int(function(start, length, advice))
