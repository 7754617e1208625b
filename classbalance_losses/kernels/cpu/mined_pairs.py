r"""Class sums over H of two classes, by one pass over the logits: no map of values is written, and none ranked.

A pixel's loss rises with its margin u, see `pairs`, so that H is what lies above an edge among the margins. A sample
tells between which of them the k-th largest is likely to be. The pass adds up what is above, and keeps the few that are
between, to be sorted. Where that was in vain the sample is all pixels, and tells the edge itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from classbalance_losses.kernels.call import ClassSums, Labels, Logits, Share
from classbalance_losses.kernels.cpu import upsample
from classbalance_losses.kernels.cpu.edge import KEPT, SUMS
from classbalance_losses.kernels.cpu.memory import hand_over
from classbalance_losses.kernels.cpu.mined import known_sums, margins
from classbalance_losses.kernels.cpu.passes import VANISHED
from classbalance_losses.kernels.cpu.pixel import PARTS, classes_of, prepared
from classbalance_losses.kernels.cpu.select import RARE, bounds, hard_count
from classbalance_losses.kernels.cpu.threads import run
from classbalance_losses.kernels.cpu.tiles import FIELDS
from classbalance_losses.kernels.factors import class_rows, indices
from classbalance_losses.kernels.forms.cpu import CROSS_ENTROPY, fill, parameters
from classbalance_losses.kernels.forms.reference import CrossEntropy, Form
from classbalance_losses.kernels.operators import define

SAMPLE = 1 << 15  # pixels of a sample, at most: torch wakes no other threads for so few

Table = np.ndarray[Any, Any]


def hardest_sums(
    logits: Logits, labels: Labels, form: Form, weight: Tensor | None, share: Share
) -> ClassSums | None:
    r"""Return what `class_sums` makes of φ over H, one of all pixels, (1, C); ``None`` where the margins do not say it.

    They do for cross-entropy of two classes at the target's size.

    Args:
        logits: Of any layout, with their gradient.
        labels: The pixels that count, and their classes.
        form: φ.
        weight: q (N, *), float32 and constant, or ``None`` for 1.
        share: What k is.
    """
    input, align_corners = upsample.taken(logits)
    is_theirs = isinstance(form, CrossEntropy) and classes_of(input, logits.single) == 2
    if align_corners is not None or not is_theirs:
        return None
    ignored, others = labels.ignore_index, (logits.bias, logits.single)
    number, sums, edge = _SUMS(input.detach(), labels.target, ignored, weight, *others, *share)
    hard, constants = (None, None, None, edge), (ignored, None, *parameters(form))
    given = (input, labels.target, sums.new_empty(0), sums, weight, *hard, *constants)
    return ClassSums(number, known_sums(*given, *others), None)


def _forward(
    input: Tensor,
    target: Tensor,
    ignore_index: int,
    weight: Tensor | None,
    bias: Tensor | None,
    single: bool,
    part: float,
    at_least: int,
) -> tuple[Tensor, Tensor, Tensor]:
    logits, labels = Logits(input, None, bias, single), Labels(target, 2, ignore_index)
    share, tensors = Share(part, at_least), {"bias": bias, "pixel_weight": weight}
    _kept, task, job = prepared(input, target, ignore_index, None, single, tensors)
    fill(job["form"], CROSS_ENTROPY, [], None, 2)
    # Parts, in the order of whose sums no thread has a say.
    job["parts"] = parts = min(int(job["parts"][0]), PARTS)
    job["room"] = target.numel() // max(parts, 1) // RARE + 1
    # An odd step, for it would take few columns of lines of even length. Of all pixels the bounds are the edge.
    for step in (-(-target.numel() // SAMPLE) | 1, 1):
        found = _near(task, job, *_bounds(logits, labels, step, share), share)
        if found is not None:
            break
    assert found is not None
    number, value, edge = (torch.from_numpy(of.astype(np.float32)) for of in found)
    return number.unsqueeze(0), value.unsqueeze(0), edge


def _bounds(logits: Logits, labels: Labels, step: int, share: Share) -> tuple[np.float32, np.float32]:
    """Return margins between which the k-th largest is likely to be, or which it is, from each image's n-th pixels."""
    rows = class_rows(logits.input)
    few = labels._replace(target=labels.target.reshape(len(rows), rows.shape[2])[:, ::step])
    u = margins(logits._replace(input=rows[:, :, ::step]), few)[indices(few)[1]]
    every = max(labels.target.numel(), 1) / max(few.target.numel(), 1)
    low, high = bounds(u.numpy(), every, share, -np.inf, np.inf)
    return tuple(np.float32(np.inf if np.isnan(bound) else bound) for bound in (low, high))


def _near(task: Any, job: Any, low: np.float32, high: np.float32, share: Share) -> tuple[Table, ...] | None:
    """Return both classes' Σ h and Σ h q φ, and the edge and h there and above; ``None`` if it is beside the bounds."""
    parts, room = int(job["parts"][0]), int(job["room"][0])
    table, kept = np.zeros((parts, SUMS)), np.empty((parts, KEPT, room), np.float32)
    tensors = {"bounds": np.array([low, high]), "hardest": table, "kept": kept}
    hand_over(job, FIELDS, {name: torch.from_numpy(of) for name, of in tensors.items()})
    job["taken"] = 0
    run(task, job)
    with np.errstate(invalid="ignore"):  # inf - inf
        *sums, valid, _ = table.sum(0)
    above, at = np.reshape(sums, (2, 2, 2))
    k = hard_count(int(valid), share)
    rest = k - int(above[0].sum())
    if rest <= 0 and high == np.inf:  # NaN, which no k = 0 hides
        whole = k / (k - rest) if k else 1
        return *(whole * above), np.array([high, 0, whole])
    if low < high:
        low, more, at = _between(kept, table[:, -1].astype(int), rest)
        above, rest = above + more, rest - int(more[0].sum())
    if not 0 < rest <= at[0].sum():
        return None
    part = rest / at[0].sum()
    return *(above + part * at), np.array([low, part, 1])


def _between(kept: Table, number: Table, rest: int) -> tuple[np.float32, Table, Table]:
    """Return the margin at place ``rest`` from above, and the sums of those above and of those at it."""
    if number.max(initial=0) > kept.shape[2] or not 0 < rest <= number.sum():
        return np.float32(np.nan), np.zeros((2, 2)), np.zeros((2, 2))
    u, value, label = np.concatenate([of[:, :n] for of, n in zip(kept, number, strict=True)], 1)
    u = np.maximum(u, VANISHED)
    edge = np.partition(u, u.size - rest)[u.size - rest]
    return edge, *(_sums(value[those], label[those].astype(int)) for those in (u > edge, u == edge))


def _sums(value: Table, label: Table) -> Table:
    return np.array([np.bincount(label, minlength=2), np.bincount(label, value, 2)])


def _fake(input: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    number, value = (torch.empty(1, 2, dtype=torch.float32, device=input.device) for _ in range(2))
    return number, value, torch.empty(3, dtype=torch.float32, device=input.device)


_SUMS = define(
    "cpu_mined_pairs(Tensor input, Tensor target, int ignore_index, Tensor? weight, Tensor? bias, bool single, "
    "float part, int at_least) -> (Tensor, Tensor, Tensor)",
    _forward,
    _fake,
)
