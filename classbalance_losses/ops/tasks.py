"""What a call's arguments mean: one softmax, or a sigmoid for each label; class indices, or a share of each class.

A sigmoid of z is the softmax of 0 and z. So each label of a pixel is read as a pixel of two classes of its own, absent
and present: (N, L, *) become N·L rows of one logit, and label l's signs are the classes 2l and 2l + 1 of all sums.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from classbalance_losses._options import Common
from classbalance_losses._validate_options import as_labels
from classbalance_losses.kernels.call import Labels, Logits, accumulation_dtype, replaced
from classbalance_losses.kernels.plain import can_read_values
from classbalance_losses.ops.logits import logits_for

_WIDE = (torch.int8, torch.uint16, torch.uint32, torch.uint64)  # no loop reads them as they come


class Reading(NamedTuple):
    """A call as rows (M, *) of pixels with C' classes each: M = N, or N·L where each of L labels has its own row."""

    logits: Logits
    labels: Labels
    pixel_weight: Tensor | None
    """q (M, *), as it came."""
    soft: Tensor | None
    """t (M, C', *), 0 where a pixel does not count; ``None``: the labels are indices."""
    groups: int
    """L; row m has the classes C'·(m mod L) and on."""
    shape: tuple[int, ...]
    """Of the terms, as the target has it."""


def read(
    input: Tensor,
    target: Tensor,
    pixel_weight: Tensor | None,
    options: Common,
    total: Tensor | None = None,
) -> Reading:
    """Return the rows of a call whose arguments are checked; ``total`` is the sum of each pixel's shares, if known."""
    task, soft = options["task"], None
    if task == "multiclass" and input.ndim == 1:  # one pixel without a batch
        input, target = input.unsqueeze(0), target.unsqueeze(0)
        pixel_weight = None if pixel_weight is None else pixel_weight.unsqueeze(0)
        total = None if total is None else total.unsqueeze(0)
        return replaced(read(input, target, pixel_weight, options, total), shape=())
    has_channel = target.ndim == input.ndim
    shape = tuple(target.shape)
    if task == "multiclass":
        groups, size = 1, target.shape[2:] if has_channel else target.shape[1:]
        shape = (input.shape[0], *size)
    else:
        groups, size = input.shape[1], target.shape[2:] if has_channel else target.shape[1:]
        rows = input.shape[0] * groups
        input, target = input.reshape(rows, 1, *input.shape[2:]), target.reshape(rows, *size)
        pixel_weight = None if pixel_weight is None else pixel_weight.reshape(rows, *size)
    if target.is_floating_point():
        soft, counts = _shares(target, accumulation_dtype(input.dtype), task, total)
        target, ignored = torch.where(counts, 0, -1), -1
    else:
        target, ignored = _merged(target, as_labels(options["ignore_index"]))
    single = task != "multiclass"
    logits = replaced(logits_for(input, target, options["upsample"], options["align_corners"]), single=single)
    labels = Labels(target, 2 if single else input.shape[1], ignored)
    return Reading(logits, labels, pixel_weight, soft, groups, shape)


def _shares(target: Tensor, dtype: torch.dtype, task: str, total: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the share of each class (M, C', *), and which pixels count: those of NaN alone, or of 0, do not."""
    target = target.to(dtype)
    if task != "multiclass":
        target = torch.stack([1 - target, target], 1)
    total = target.detach().sum(1) if total is None else total
    if can_read_values(total) and not bool(total.isnan().any()):  # shares are never below 0
        return target, total != 0
    target = torch.where(target.isnan().all(1, keepdim=True), 0, target)
    return target, (target != 0).any(1)


def _merged(target: Tensor, ignored: int | tuple[int, ...]) -> tuple[Tensor, int]:
    """Return labels of a dtype that loops read, and the label that is ignored, one in the place of several."""
    if target.dtype == torch.bool:
        target = target.to(torch.uint8)
    elif target.dtype in _WIDE:
        target = target.long()
    if isinstance(ignored, int):
        return target, ignored
    index = target.long()  # a uint8 is never -100
    for label in ignored[1:]:
        index = torch.where(index == label, ignored[0], index)
    return index, ignored[0]


def grouped(labels: Labels, groups: int) -> Labels:
    """Return the labels of row m (M, *) as classes C'·(m mod groups) and on, of groups·C'."""
    if groups == 1:
        return labels
    target, classes = labels.target, labels.num_classes
    row = torch.arange(target.shape[0], dtype=torch.int64, device=target.device) % groups * classes
    index = target.long() + row.view(-1, *[1] * (target.ndim - 1))
    return Labels(torch.where(target.long() != labels.ignore_index, index, -1), groups * classes, -1)
