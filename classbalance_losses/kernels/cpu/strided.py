"""Logits as they lie in memory, (N, C, P) of any strides, and their job for `pixel_loops`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from classbalance_losses.kernels.cpu import pixel_loops as loops
from classbalance_losses.kernels.cpu.memory import address, hand_over, hand_over_labels
from classbalance_losses.kernels.cpu.passes import PITCH
from classbalance_losses.kernels.cpu.tiles import FIELDS

_LOGITS = 1 << 16  # that a thread takes at a time: 256 KiB
_PIXELS = PITCH  # at most: its numbers of a pixel stay in the first-level cache
_FEW = 16  # at least, however many classes there are: a vector or two
_TURNS = 32  # a thread's, so that none waits long for the last


def keeps_log_sum(input: Tensor, classes: int, *, is_enlarged: bool = False) -> bool:
    """Whether forward keeps log Σ, a float32 of each pixel: where to find it again is the slower way."""
    return (input.dtype == torch.float32 or is_enlarged) and classes > 2


def like(input: Tensor) -> Tensor:
    """Make the gradient, in the layout of the logits unless their spatial axes could not be seen as one."""
    gradient = torch.empty_like(input)
    size, stride = gradient.shape, gradient.stride()
    is_flat = all(stride[d] == stride[d + 1] * size[d + 1] for d in range(2, input.ndim - 1))
    return gradient if is_flat else torch.empty_like(input, memory_format=torch.contiguous_format)


def job_for(
    rows: Tensor, target: Tensor | None, ignore_index: int, single: bool = False, **maps: Tensor
) -> Any:
    """Return the sizes, and the addresses of logits (N, C, P), labels and maps, which the caller keeps alive."""
    job = np.zeros(1, loops.JOB)
    job["images"], job["channels"], job["pixels"] = images, channels, pixels = rows.shape
    job["classes"] = classes = 2 if single else channels
    job["size"] = size = max(min(_PIXELS, _LOGITS // classes), _FEW)
    job["parts"] = images * -(-pixels // size)
    job["type"] = loops.TYPES[rows.dtype]
    if target is not None:
        hand_over_labels(job, target, ignore_index, (images, pixels))
    hand_over_rows(job, "x", rows, rows.dtype)
    hand_over(job, FIELDS, maps)
    return job


def share_out(job: Any) -> None:
    """Have a thread take neighbouring tiles, where no sum depends on who takes which.

    A page of new memory holds a row of two tiles. Threads that reach it at one time wait for each other in the kernel:
    the gradient of 2×19×512×1024 took 56 ms tile by tile, and 37 so.
    """
    job["parts"] = min(int(job["parts"][0]), _TURNS * torch.get_num_threads())


def hand_over_rows(job: Any, name: str, rows: Tensor, dtype: torch.dtype) -> None:
    """Write the address and the strides of logits (N, C, P), of their gradient, or of label vectors."""
    rank = "classes" if name == "soft" else "channels"
    shape = [int(job[key][0]) for key in ("images", rank, "pixels")]
    job[name] = address(name, rows, dtype, shape, is_laid_out=list(rows.shape) == shape)
    job[f"{name}_image"], job[f"{name}_class"], job[f"{name}_pixel"] = rows.stride()
    if shape[-1] == 1:  # whatever its stride is
        job[f"{name}_pixel"] = 1
