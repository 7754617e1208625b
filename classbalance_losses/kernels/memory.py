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
_EVERY = 5  # of the huge pages, each fifth is tried


def empty_like(input: Tensor, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
    """Return uninitialised memory, as ``torch.empty_like`` does, that asks Linux for huge pages.

    A large tensor is fresh memory at every step, and the kernel hands it over page by page at the first write:
    with pages of 4 KiB that can take longer than the arithmetic of a backward pass. It is advice: where the system
    has no huge pages, or gives them anyway, nothing changes. (``THP_MEM_ALLOC_ENABLE=1`` has torch ask so for every
    tensor.)

    A virtual machine may have handed free memory back to its host. A huge page of that costs more than small pages,
    which the kernel takes from memory in use; so a few are tried, and the advice is withdrawn where two are dear.
    """
    empty = torch.empty_like(input, memory_format=memory_format)
    size = empty.numel() * empty.element_size()
    if size >= _SMALLEST and sys.platform == "linux":
        start = -(-empty.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (empty.data_ptr() + size - start) // mmap.PAGESIZE * mmap.PAGESIZE
        _madvise(start, length, mmap.MADV_HUGEPAGE)
        if _are_dear(start, start + length):
            _madvise(start, length, mmap.MADV_NOHUGEPAGE)
    return empty


def _are_dear(start: int, end: int) -> bool:
    """Try huge pages all over the range; two must be dear, for in one a thread may just have lost its turn."""
    pages = range(-(-start // _HUGE) * _HUGE, end, _HUGE)
    dear = 0
    for place in pages[::_EVERY]:
        dear += _seconds_of_a_write(place) > _DEAR
        if dear == 2:
            return True
    return False


def _seconds_of_a_write(address: int) -> float:
    before = time.perf_counter()
    ctypes.memset(address, 0, 1)
    return time.perf_counter() - before


def _madvise(start: int, length: int, advice: int) -> int:
    """Call the C library's madvise; Python's own works on its mmap objects alone. A refusal is no error."""
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return int(function(start, length, advice))
