"""Buffers whose shape is unknown until the first batch shows the number of classes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn


def register_lazy_buffer(
    module: nn.Module, name: str, dtype: torch.dtype = torch.float32, *, persistent: bool = True
) -> None:
    """Register an empty buffer that takes the saved shape when a state dict is loaded.

    So a checkpoint taken in mid-training loads into a module that has seen no batch yet, and a checkpoint
    taken before the first batch loads into one that has. Two different numbers of classes stay the size
    mismatch that ``load_state_dict`` reports.
    """
    module.register_buffer(name, torch.empty(0, dtype=dtype, device="cpu"), persistent=persistent)
    if persistent:
        register: Any = module.register_load_state_dict_pre_hook  # torch gives it no types
        register(partial(_adopt_saved_shape, name))


def _adopt_saved_shape(
    name: str, module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object
) -> None:
    buffer, saved = getattr(module, name), state_dict.get(prefix + name)
    if saved is not None and 0 in (buffer.numel(), saved.numel()):
        setattr(module, name, buffer.new_empty(saved.shape))
