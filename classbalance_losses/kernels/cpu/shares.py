"""What is asked of shares before a loss takes them, in one pass.

Of label vectors: their range, and each pixel's sum. Of labels that are absent or present: whether they are whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor

from classbalance_losses.kernels.call import NARROW
from classbalance_losses.kernels.cpu.map_loops import PART
from classbalance_losses.kernels.cpu.math import add, compiled, flags, floats, integers, larger, take, task
from classbalance_losses.kernels.cpu.memory import Field, hand_over
from classbalance_losses.kernels.cpu.passes import PITCH
from classbalance_losses.kernels.cpu.threads import run

_PARTS = 64
_FIELDS = {
    "share": Field(torch.float32, ("images", "classes", "pixels")),
    "total": Field(torch.float32, ("images", "pixels")),
    "bounds": Field(torch.float32, ("parts", 2)),
}
_WHOLE_FIELDS = {
    "share": Field(torch.float32, ("entries",)),
    "label": Field(torch.uint8, ("entries",)),
    "broken": Field(torch.int64, (1,)),
}
_WHOLE_JOB = np.dtype([(name, np.int64) for name in ("taken", "entries", *_WHOLE_FIELDS)])
_JOB = np.dtype([(name, np.int64) for name in ("taken", "images", "classes", "pixels", "parts", *_FIELDS)])


def looked_at(target: Tensor) -> tuple[float, float, Tensor]:
    """Return the least and the largest share of contiguous float32 (N, C, *), and the sums over classes (N, *).

    A NaN has no say in the bounds, and makes its sum NaN.
    """
    job = np.zeros(1, _JOB)
    total = torch.empty(target.shape[:1] + target.shape[2:], dtype=torch.float32, device="cpu")
    job["images"], job["classes"] = target.shape[:2]
    job["pixels"] = total[0].numel()
    job["parts"] = _PARTS
    bounds = np.zeros((_PARTS, 2), np.float32)
    hand_over(job, _FIELDS, {"share": target, "total": total, "bounds": torch.from_numpy(bounds)})
    run(_look, job)
    return float(bounds[:, 0].min()), float(bounds[:, 1].max()), total


def whole(target: Tensor) -> Tensor | None:
    """Return contiguous float32 labels of 0, 1 and NaN as bytes, NaN as ``NARROW``, or ``None`` if there are others."""
    label, broken = torch.empty(target.shape, dtype=torch.uint8, device="cpu"), np.zeros(1, np.int64)
    job = np.zeros(1, _WHOLE_JOB)
    job["entries"] = target.numel()
    hand_over(job, _WHOLE_FIELDS, {"share": target, "label": label, "broken": torch.from_numpy(broken)})
    run(_narrow, job)
    return None if broken[0] else label


@task
def _narrow(memory: Any) -> None:
    """Write labels as bytes until a part has others."""
    job = carray(memory, 1, _WHOLE_JOB)[0]
    first = PART * take(memory)
    while first < job.entries and not integers(job.broken, 1)[0]:
        share = floats(job.share + 4 * first, min(PART, job.entries - first))
        if _as_bytes(share, flags(job.label + first, share.size)):
            add(job.broken, 1)
        first = PART * take(memory)


@compiled
def _as_bytes(share: Any, label: Any) -> Any:
    others = np.int32(0)
    for p in range(share.size):
        t = share[p]
        is_known = np.isnan(t) | (t == np.float32(0)) | (t == np.float32(1))
        label[p] = np.uint8(1) if t == np.float32(1) else (np.uint8(NARROW) if np.isnan(t) else np.uint8(0))
        others |= np.int32(0) if is_known else np.int32(1)
    return others


@task
def _look(memory: Any) -> None:
    job = carray(memory, 1, _JOB)[0]
    low, high = np.empty(PITCH, np.float32), np.empty(PITCH, np.float32)
    tiles = (job.pixels + PITCH - 1) // PITCH
    part = take(memory)
    while part < job.parts:
        low[:], high[:] = np.float32(0), np.float32(0)
        for tile in range(
            job.images * tiles * part // job.parts, job.images * tiles * (part + 1) // job.parts
        ):
            image, first = tile // tiles, tile % tiles * PITCH
            total = floats(job.total + 4 * (image * job.pixels + first), min(PITCH, job.pixels - first))
            total[:] = 0
            for k in range(job.classes):
                place = (image * job.classes + k) * job.pixels + first
                _add(floats(job.share + 4 * place, total.size), low, high, total)
        bounds = floats(job.bounds + 8 * part, 2)
        for p in range(PITCH):
            bounds[0], bounds[1] = min(bounds[0], low[p]), max(bounds[1], high[p])
        part = take(memory)


@compiled
def _add(share: Any, low: Any, high: Any, total: Any) -> None:
    for p in range(share.size):
        t = share[p]
        low[p] = -larger(-low[p], -t)
        high[p] = larger(high[p], t)
        total[p] += t
