r"""Class sums of cross-entropy over H by one pass over the logits: no map of values is written.

A sample tells between which bits the k-th largest φ is likely to lie. The pass adds up what is above, and keeps the few
that are between, to be sorted; where that was in vain a map is ranked. Backward makes φ again, by the same steps on
the same numbers, and so the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from classbalance_losses.kernels.call import ClassSums, Labels, Logits, Share
from classbalance_losses.kernels.cpu import strided, upsample
from classbalance_losses.kernels.cpu.class_cells import COLUMNS, lanes_for
from classbalance_losses.kernels.cpu.hardest import COUNTS, KEPT
from classbalance_losses.kernels.cpu.maps import class_sums
from classbalance_losses.kernels.cpu.memory import hand_over
from classbalance_losses.kernels.cpu.mined import known_sums
from classbalance_losses.kernels.cpu.pixel import FORWARD, PARTS, classes_of, prepared
from classbalance_losses.kernels.cpu.select import bounds, hard_count, kth_largest
from classbalance_losses.kernels.cpu.threads import run
from classbalance_losses.kernels.cpu.tiles import FIELDS
from classbalance_losses.kernels.factors import class_rows
from classbalance_losses.kernels.forms.cpu import CROSS_ENTROPY, fill, parameters
from classbalance_losses.kernels.forms.reference import CrossEntropy, Form
from classbalance_losses.kernels.operators import define

SAMPLE = 1 << 16  # logits of a sample, at most, which lie far apart; but no fewer pixels than
FEW = 1 << 11
_NEAR = 4  # one pixel of a part in so many may be kept

Table = np.ndarray[Any, Any]


def hardest_sums(
    logits: Logits, labels: Labels, form: Form, weight: Tensor | None, share: Share
) -> ClassSums | None:
    r"""Return what `class_sums` makes of φ over H, one of all pixels, (1, C), of cross-entropy.

    Of another form, of logits that are to be enlarged, and of half logits of three classes and more, whose log Σ is not
    kept, it is ``None``.

    Args:
        logits: Of any layout, with their gradient.
        labels: The pixels that count, and their classes.
        form: φ.
        weight: q (N, *), float32 and constant, or ``None`` for 1.
        share: What k is.
    """
    input, align_corners = upsample.taken(logits)
    classes = classes_of(input, logits.single)
    if not isinstance(form, CrossEntropy) or align_corners is not None:
        return None
    if classes > 2 and not strided.keeps_log_sum(input, classes):
        return None
    ignored, others = labels.ignore_index, (logits.bias, logits.single)
    number, sums, log_sum, *threshold = _SUMS(input.detach(), labels.target, ignored, weight, *others, *share)
    hard, constants = (None, *threshold), (ignored, None, *parameters(form))
    given = (input, labels.target, log_sum, sums, weight, *hard, *constants)
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    logits, labels = (
        Logits(input, None, bias, single),
        Labels(target, classes_of(input, single), ignore_index),
    )
    share = Share(part, at_least)
    log_sum = _log_sum(input, target, single)
    found = _near(logits, labels, weight, share, log_sum, *_bounds(logits, labels, share))
    if found is None:
        value, log_sum = _values(logits, labels)
        hard = kth_largest(value, labels, 1, share, None)
        sums = class_sums(labels, value, None, weight, hard=hard)
        assert sums.value is not None
        return sums.number.float(), sums.value, log_sum, hard.bits, hard.share
    of_classes, bits, h = found
    number, values = (torch.from_numpy(of.astype(np.float32)).unsqueeze(0) for of in of_classes)
    threshold = torch.tensor([bits], dtype=torch.int64, device="cpu")
    return number, values, log_sum, threshold, torch.tensor([h], dtype=torch.float32, device="cpu")


def _log_sum(input: Tensor, target: Tensor, single: bool) -> Tensor:
    is_kept = strided.keeps_log_sum(input, classes_of(input, single))
    return torch.empty(target.shape if is_kept else (0,), dtype=torch.float32, device=input.device)


def _values(logits: Logits, labels: Labels) -> tuple[Tensor, Tensor]:
    """Return φ of each pixel, with the bits that it has in every pass, and log Σ if it is kept."""
    constants = (labels.ignore_index, None, *parameters(CrossEntropy()), False)
    value, _, log_sum, _ = FORWARD(logits.input, labels.target, *constants, logits.bias, logits.single)
    return value, log_sum


def _bounds(logits: Logits, labels: Labels, share: Share) -> tuple[int, int]:
    """Return bits between which the k-th largest is likely to be, by each image's n-th pixels."""
    rows, target = class_rows(logits.input), labels.target
    # An odd step, for another would take few columns of lines of even length.
    step = -(-target.numel() // max(SAMPLE // labels.num_classes, FEW)) | 1
    few = labels._replace(target=target.reshape(len(rows), rows.shape[2])[:, ::step].contiguous())
    value = _values(logits._replace(input=rows[:, :, ::step]), few)[0].numpy().ravel()
    value = value[few.target.numpy().ravel().astype(np.int64) != labels.ignore_index]
    every = max(target.numel(), 1) / max(few.target.numel(), 1)
    low, high = bounds(value.view(np.int32) & 0x7FFFFFFF, every, share, 0, 0x7FFFFFFF)
    return int(low), int(high)


def _near(
    logits: Logits, labels: Labels, weight: Tensor | None, share: Share, log_sum: Tensor, low: int, high: int
) -> tuple[Table, int, float] | None:
    """Return Σ h and Σ h q φ of the classes (2, C), the threshold and h there; ``None`` if it is beside the bounds."""
    input, target, classes = logits.input, labels.target, labels.num_classes
    tensors = {"bias": logits.bias, "pixel_weight": weight, "log_sum": log_sum if log_sum.numel() else None}
    _kept, task, job = prepared(input, target, labels.ignore_index, None, logits.single, tensors)
    fill(job["form"], CROSS_ENTROPY, [], None, classes)
    # Parts, in the order of whose sums no thread has a say.
    job["parts"] = parts = min(int(job["parts"][0]), PARTS)
    pixels = target.numel() // max(parts, 1)
    job["lanes"], job["cells"] = lanes, cells = lanes_for(pixels, classes), classes + 1
    job["room"] = room = pixels // _NEAR + 1
    table, counts = np.zeros((parts, lanes, cells, COLUMNS)), np.zeros((parts, COUNTS))
    kept = np.empty((parts, KEPT, room), np.float32)
    made = {"bounds": np.array([low, high], np.int32), "class_sums": table, "hardest": counts, "kept": kept}
    hand_over(job, FIELDS, {name: torch.from_numpy(of) for name, of in made.items()})
    run(task, job)
    with np.errstate(invalid="ignore"):  # inf - inf
        sums = table[:, :, 1:].sum((0, 1)).T[[0, 2]]
        (valid, inside), number = counts.sum(0), counts[:, -1].astype(int)
        rest = hard_count(int(valid), share) - int(sums[0].sum())
        if not 0 < rest <= inside or number.max() > room:
            return None
        value, weighted, label = np.concatenate([of[:, :n] for of, n in zip(kept, number, strict=True)], 1)
        bits = value.view(np.int32) & 0x7FFFFFFF
        threshold = np.partition(bits, -rest)[-rest]
        place = classes * (1 + np.sign(bits - threshold)) + label.astype(np.int32)  # below, at and above it
        counted = [np.bincount(place, of, 3 * classes) for of in (None, weighted)]
        _, tied, more = np.reshape(counted, (2, 3, classes)).swapaxes(0, 1)
        h = (rest - more[0].sum()) / tied[0].sum()
        return sums + more + h * tied, int(threshold), float(h)


def _fake(input: Tensor, target: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    single = others[3]
    classes = classes_of(input, single)
    number, value = (torch.empty(1, classes, dtype=torch.float32, device=input.device) for _ in range(2))
    bits, h = (torch.empty(1, dtype=dtype, device=input.device) for dtype in (torch.int64, torch.float32))
    return number, value, _log_sum(input, target, single), bits, h


_SUMS = define(
    "cpu_hardest_sums(Tensor input, Tensor target, int ignore_index, Tensor? weight, Tensor? bias, bool single, "
    "float part, int at_least) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _fake,
)
