"""Memory for a large gradient on a CPU."""

from __future__ import annotations

import ctypes
import mmap
import sys

import torch
from torch import Tensor

_SMALLEST = 1 << 22  # bytes: two huge pages, below which advice is not worth a system call


def empty_like(input: Tensor, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
    """Return uninitialised memory, as ``torch.empty_like`` does, that asks Linux for huge pages.

    A large tensor is fresh memory at every step, and the kernel hands it over page by page at the first write:
    with pages of 4 KiB that can take longer than the arithmetic of a backward pass. It is advice: where the system
    has no huge pages, or gives them anyway, nothing changes. (``THP_MEM_ALLOC_ENABLE=1`` has torch ask so for every
    tensor.)
    """
    empty = torch.empty_like(input, memory_format=memory_format)
    size = empty.numel() * empty.element_size()
    if size >= _SMALLEST and sys.platform == "linux":
        start = -(-empty.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (empty.data_ptr() + size - start) // mmap.PAGESIZE * mmap.PAGESIZE
        _madvise(start, length, mmap.MADV_HUGEPAGE)
    return empty


def _madvise(start: int, length: int, advice: int) -> int:
    """Call the C library's madvise; Python's own works on its mmap objects alone. A refusal is no error."""
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return int(function(start, length, advice))
