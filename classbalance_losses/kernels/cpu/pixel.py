r"""The pixel pass on a CPU: φ of each pixel by one pass over the logits, its gradient by another.

Forward reads the logits from memory once, and keeps :math:`s = \log \sum_k e^{x_k - \max}` of each pixel; backward
reads them once, finds the largest again, and writes :math:`g (u_k - p_k \sum_j u_j)` once. Half logits have half the
size, and as few as 11 classes of them are 22 bytes a pixel: there s is not kept, but found again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classbalance_losses.kernels.call import Labels, Logits
from classbalance_losses.kernels.cpu.memory import address, hand_over_labels
from classbalance_losses.kernels.cpu.operators import define
from classbalance_losses.kernels.cpu.pixel_loops import JOB, TYPES, backward, forward
from classbalance_losses.kernels.cpu.threads import run
from classbalance_losses.kernels.cpu.tiles import PITCH
from classbalance_losses.kernels.forms.cpu import form_of, parameters, record
from classbalance_losses.kernels.forms.reference import CrossEntropy, Form
from classbalance_losses.kernels.plain import needs_reference

_LOGITS = 1 << 16  # that a thread takes at a time: 256 KiB
_PIXELS = PITCH  # at most: its numbers of a pixel stay in the first-level cache
Numbers = Sequence[float]


def pixel_values(logits: Logits, labels: Labels, form: Form) -> Tensor:
    """Return φ of each pixel (N, *) in float32, 0 where its label is ignored, with the gradient of the logits."""
    code, numbers, weight = parameters(form)
    value: Tensor = _PixelPass.apply(logits.input, *_parts(labels), code, numbers, weight, False)[0]  # type: ignore[no-untyped-call]
    return value


def cross_entropy_and_error(logits: Logits, labels: Labels) -> tuple[Tensor, Tensor]:
    r"""Return the cross-entropy, and the constant :math:`\lVert p_i - e_{y_i} \rVert^2` (N, *)."""
    value, error = _PixelPass.apply(logits.input, *_parts(labels), *parameters(CrossEntropy()), True)  # type: ignore[no-untyped-call]
    return value, error


def _parts(labels: Labels) -> tuple[Tensor, int]:
    return labels.target, labels.ignore_index
