"""The backend "cpu": loops that numba compiles, on torch's own threads. Importing it imports numba."""

from __future__ import annotations

from classbalance_losses.kernels.call import Labels, Logits
from classbalance_losses.kernels.cpu.maps import class_sums, labels_outside, narrowed, weighted_sums
from classbalance_losses.kernels.cpu.mined import mined_sums
from classbalance_losses.kernels.cpu.mined_pass import hardest_sums
from classbalance_losses.kernels.cpu.pixel import (
    cross_entropy_and_error,
    error_sums,
    pixel_values,
    values_and_overlap,
)
from classbalance_losses.kernels.cpu.pixel_loops import TYPES
from classbalance_losses.kernels.cpu.select import kth_largest
from classbalance_losses.kernels.cpu.soft import soft_cross_entropy, soft_sums
from classbalance_losses.kernels.cpu.sums import pixel_sums
from classbalance_losses.kernels.cpu.threads import failure
from classbalance_losses.kernels.simplex import project

__all__ = [
    "class_sums",
    "cross_entropy_and_error",
    "error_sums",
    "failure",
    "hardest_sums",
    "kth_largest",
    "labels_outside",
    "mined_sums",
    "narrowed",
    "pixel_sums",
    "pixel_values",
    "project",
    "reasons",
    "soft_cross_entropy",
    "soft_sums",
    "values_and_overlap",
    "weighted_sums",
]


def reasons(logits: Logits | None, labels: Labels) -> list[str]:
    """Why the loops cannot take the logits, if there are any, and labels."""
    found = []
    if labels.target.device.type != "cpu":
        found.append(f"it needs tensors on the CPU, got labels on {labels.target.device}")
    if logits is not None and logits.input.dtype not in TYPES:
        found.append(f"it takes float32, bfloat16 and float16, got logits of {logits.input.dtype}")
    return found
