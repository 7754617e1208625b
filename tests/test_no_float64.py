"""Apple's MPS and some other devices have no float64: no tensor of it is made, unless the logits are float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from calls import Call, large_losses, of_case, small_calls
from cases import DEFAULTS, sample
from distributed_worker import leave_group
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from classbalance_losses import (
    DiceLoss,
    EntropyLoss,
    FocalLoss,
    LogitAdjustedLoss,
    WeightedCrossEntropyLoss,
    use_backend,
)


class NoDouble(TorchDispatchMode):
    """Refuse operations that give float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) and leaf.dtype == torch.float64 for leaf in tree_leaves(result)):
            raise TypeError(f"{func} made a float64 tensor")
        return result


def offences(calls: list[Call]) -> list[str]:
    """Name the calls that made one."""
    return [f"{call.name}: {said}" for call in calls if (said := _offence(call))]


def _offence(call: Call) -> str:
    try:
        with NoDouble():
            call.run()
    except TypeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("default", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_small_inputs(backend: str, default: torch.dtype) -> None:
    """Under a default of float64, what follows the default is seen too."""
    calls = small_calls()
    torch.set_default_dtype(default)
    try:
        with use_backend(backend):
            found = offences(calls)
    finally:
        torch.set_default_dtype(torch.float32)
    assert not found


def test_modules_of_arrays_can_be_moved() -> None:
    """An array is of float64, as a rule, and a module of it would have a buffer that such a device does not take."""
    numbers, s = np.array([1.0, 2.0, 0.1, 0.5]), sample(2, 4, dtype=torch.float32)
    for loss in (
        WeightedCrossEntropyLoss(numbers),
        FocalLoss(alpha=numbers),
        LogitAdjustedLoss(numbers),
        DiceLoss(class_weight=numbers),
        EntropyLoss(numbers),
    ):
        assert {buffer.dtype for buffer in loss.buffers()} == {torch.float32}
    by_list = WeightedCrossEntropyLoss(numbers.tolist())(s.input, s.target)
    assert torch.equal(WeightedCrossEntropyLoss(numbers)(s.input, s.target), by_list)


def test_large_inputs_by_the_reference() -> None:
    with use_backend("reference"):
        assert not offences(list(large_losses()))


def test_across_ranks() -> None:
    """A group of one rank takes the path of many: histograms, and sums that are reduced."""
    here = sample(2, weighted=True, dtype=torch.float32)
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        with use_backend("reference"):
            found = offences([of_case(case, here, "ranks", process_group="world") for case in DEFAULTS])
    finally:
        leave_group()
    assert not found
