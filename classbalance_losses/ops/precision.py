"""Full precision inside autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Switch autocast off on the tensor's device, where there is any: the meta device, say, has none."""
    kind = tensor.device.type
    if torch.compiler.is_compiling() or torch.amp.is_autocast_available(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()
