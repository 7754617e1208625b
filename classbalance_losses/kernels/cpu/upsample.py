r"""The pixel pass over logits that are enlarged to the target's size on the way: at that size they never exist.

(Bi-, tri-)linear interpolation takes its weights from whole numbers. Pixel i of an axis lies at

.. math:: s(i) = \frac{\max(a i + b, 0)}{u},

and is made of the logits at :math:`\lfloor s \rfloor`, whose share is :math:`1 - \{s\}`, and the next ones. Logits of
half precision, which are few, are copied to float32 first.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from classbalance_losses.kernels.call import Logits, Resize
from classbalance_losses.kernels.cpu import upsample_loops as loops
from classbalance_losses.kernels.cpu.memory import hand_over, hand_over_labels
from classbalance_losses.kernels.cpu.passes import PITCH
from classbalance_losses.kernels.cpu.threads import run

_PIXELS = PITCH  # to which a line is widened at once, at most, and their logits
_LOGITS = 1 << 15
_LINES = 8  # of a cell, at most, and the logits to which they are widened
_BLOCK = 1 << 16
_CELLS = 1 << 5  # that threads should have to share
_SHORT = 1 << 6  # pixels of a row: with fewer, a cell's lines cost more than they save


def taken(logits: Logits) -> tuple[Tensor, bool | None]:
    """Return what a loop takes, without a class 0 and a bias and, if it is to enlarge it, ``align_corners``."""
    resize = _on_the_way(logits)
    if resize is not None:
        return logits.input, resize.align_corners
    return resized(logits), None


def resized(logits: Logits) -> Tensor:
    """Return what a loop takes at full size."""
    return Logits(in_single(logits).input, logits.resize).full_size()


def in_single(logits: Logits) -> Logits:
    """Return logits that are resized in float32: half ones would lose digits."""
    return logits if logits.resize is None else logits._replace(input=logits.input.float())


def _on_the_way(logits: Logits) -> Resize | None:
    """Return the resize if it is to happen in the loop: no axis shrinks, and rows of pixels are not short."""
    if logits.resize is None:
        return None
    sizes = zip(logits.input.shape[2:], logits.resize.size, strict=True)
    axes = [(low, full) for low, full in sizes if (low, full) != (1, 1)]
    is_larger = all(low <= full for low, full in axes) and any(low < full for low, full in axes)
    return logits.resize if is_larger and (len(axes) == 1 or axes[-1][1] >= _SHORT) else None


def source(input: Tensor) -> Tensor:
    """Return the logits as the loop reads them."""
    return input.detach().float().contiguous()


def job_for(
    x: Tensor, target: Tensor, ignore_index: int, align_corners: bool, single: bool, **maps: Tensor
) -> Any:
    """Return the sizes and axes, and the addresses of logits, labels and maps, which the caller keeps alive."""
    job = np.zeros(1, loops.JOB)
    job["images"], job["channels"] = x.shape[:2]
    job["classes"] = 2 if single else x.shape[1]
    job["sources"], job["pixels"] = x.numel(), prod(target.shape[1:])
    hand_over(job, loops.FIELDS, {"x": x, **maps})
    hand_over_labels(job, target, ignore_index, target.shape)
    sizes = [pair for pair in zip(x.shape[2:], target.shape[1:], strict=True) if pair != (1, 1)]
    for name, (low, full) in zip(loops.AXES, [(1, 1)] * (3 - len(sizes)) + sizes, strict=True):
        job[name] = _axis(low, full, align_corners)
    _cut(job)
    job["parts"] = x.shape[0] * prod(
        -(-int(job[name]["low"][0]) // int(job[name]["group"][0])) for name in loops.AXES
    )
    return job


def _axis(low: int, full: int, align_corners: bool) -> tuple[int, ...]:
    """Return an axis, in cells of one index."""
    if align_corners:
        return low, full, low - 1, 0, max(full - 1, 1), 1, 0, 1
    return low, full, 2 * low, low - full, 2 * full, 1, 0, 1


def _cut(job: Any) -> None:
    """Choose the cells: columns by what a tile holds, lines by what the cache does, beside it; threads have no say."""
    images, channels = int(job["images"][0]), int(job["channels"][0])
    (depth,), (height,) = job["deep"]["low"].tolist(), job["tall"]["low"].tolist()
    low, full, step, shift, unit = job["wide"][0].tolist()[:5]
    columns = max(min(_PIXELS, _LOGITS // channels, full), 1)
    group = low if full <= columns else max((columns * step + min(shift, 0)) // unit, 1)
    parts = -(-low // group)
    lines = min(_LINES, _BLOCK // (channels * columns) - 1, images * depth * height * parts // _CELLS, height)
    job["columns"], job["wide"]["group"], job["tall"]["group"] = columns, -(-low // parts), max(lines, 1)


def run_in_turns(job: Any) -> None:
    """Run the loop so that no neighbours among the cells run at one time."""
    axes = [job[name] for name in loops.AXES]
    for turns in product(*(range(2 if axis["low"] > axis["group"] else 1) for axis in axes)):
        for axis, turn in zip(axes, turns, strict=True):
            axis["turn"], axis["apart"] = turn, 2
        job["taken"] = 0
        run(loops.pixel_pass, job)
