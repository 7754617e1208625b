"""Addresses for compiled loops, which believe them: only of the memory that the loop was written for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Bytes of a label, by which a loop tells its type.
LABELS = {torch.uint8: 1, torch.int16: 2, torch.int32: 4, torch.int64: 8}


class Field(NamedTuple):
    """Contiguous memory: its dtype, and the factors of its size, in entries or as names of the job's numbers."""

    dtype: torch.dtype
    size: tuple[str | int, ...]


def hand_over(job: Any, fields: Mapping[str, Field], tensors: Mapping[str, Tensor]) -> None:
    """Write the addresses of tensors, which the caller keeps alive, into a job that has its numbers.

    Raises:
        TypeError: a tensor is not what its field is declared as.
    """
    for name, values in tensors.items():
        dtype, factors = fields[name]
        shape = [int(job[factor][0]) if isinstance(factor, str) else factor for factor in factors]
        job[name] = address(name, values, dtype, shape, is_laid_out=values.is_contiguous())


def hand_over_labels(job: Any, target: Tensor, ignore_index: int, shape: Sequence[int]) -> None:
    """Write a job's "label", "label_bytes" and "ignored", for `labels.classes_of`.

    Raises:
        TypeError: the labels, which the caller keeps alive, are not contiguous, or not as many as ``shape`` says.
    """
    dtype = target.dtype if target.dtype in LABELS else torch.int64
    job["label"] = address("label", target, dtype, shape, is_laid_out=target.is_contiguous())
    job["label_bytes"], job["ignored"] = LABELS[dtype], ignore_index


def address(name: str, values: Tensor, dtype: torch.dtype, shape: Sequence[int], *, is_laid_out: bool) -> int:
    """Return where a tensor lies that has the dtype, and as many entries as ``shape``, on the CPU.

    ``is_laid_out``: its strides are those by which the loop goes over it.

    Raises:
        TypeError: it is another one.
    """
    fits = values.dtype == dtype and values.device.type == "cpu" and values.numel() == math.prod(shape)
    if not fits or not is_laid_out or values.is_neg() or (values.numel() and not values.data_ptr()):
        raise TypeError(
            f"Expected {name} for a compiled loop as {dtype} on the CPU, of {tuple(shape)} entries side by side, got "
            f"{values.dtype} on {values.device}, of shape {tuple(values.shape)} with strides {values.stride()}."
        )
    return values.data_ptr()
