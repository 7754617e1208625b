"""The backend "reference": plain PyTorch, for any tensor and any derivative. What the others are tested against."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from classbalance_losses.kernels.call import ClassSums, Hard, Labels, Logits, WeightedSums, accumulation_dtype
from classbalance_losses.kernels.forms.reference import CrossEntropy, Form

_BLOCK = 1 << 6  # pixels that are added one after the other: a table of at most a 64th of the logits' size
