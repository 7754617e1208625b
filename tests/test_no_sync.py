"""No operation that would make a CUDA device wait for the host, have a shape that depends on data, or be refused where
algorithms have to be deterministic.

Proved without a GPU: forward and backward run on the meta device, where there is no value to read; and every operation
that reaches the dispatcher is checked against the list of those that synchronise.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import CASES, Case, Sample, over, sample
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from classbalance_losses import DyCELoss

FORBIDDEN = {
    "_local_scalar_dense",
    "item",
    "nonzero",
    "nonzero_static",
    "masked_select",
    "bincount",
    "one_hot",
    "unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "equal",
    "is_nonzero",
    "histc",
    "repeat_interleave",
}


class NoSync(TorchDispatchMode):
    """Refuse forbidden operations and boolean indices."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in FORBIDDEN, f"{func} synchronises"
        if name in {"index", "index_put", "index_put_", "_unsafe_index"}:
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            assert not masks, f"{func} by a mask synchronises"
        if name == "cumsum":
            assert not args[0].is_floating_point(), "CUDA adds floats in no fixed order there"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def _no_value_checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Values are read on the CPU to give better errors; here the path of a device is wanted."""
    for name, module in list(sys.modules.items()):
        if name.startswith("classbalance_losses") and hasattr(module, "can_read_values"):
            monkeypatch.setattr(module, "can_read_values", lambda tensor: False)
    return


def runs_on_device(case: Case) -> bool:
    return case.settings(4).get("solver") != "cvxpy"


ON_DEVICE = [case for case in CASES if runs_on_device(case)]


@over(ON_DEVICE)
@pytest.mark.usefixtures("_no_value_checks")
def test_nothing_synchronises(case: Case) -> None:
    here = sample(2, weighted=True, ignore_index=255)
    here = replace(here, target=here.target.to(torch.uint8)).leaf()
    module = case.build(here)
    with NoSync():
        case(here).backward()
        case(here, reduction="none").sum().backward()
        case.by_module(here, module).backward()
        case.by_module(here, module).backward()
        (first,) = torch.autograd.grad(case(here), here.input, create_graph=True)
        first.square().sum().backward()


def on_meta(s: Sample) -> Sample:
    def to(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to("meta")

    return Sample(to(s.input), to(s.target), s.ignore_index, to(s.pixel_weight), to(s.features)).leaf()  # type: ignore[arg-type]


@over(ON_DEVICE)
def test_runs_without_values(case: Case) -> None:
    """Forward and backward on a device whose tensors have no values to read: one look would raise."""
    if case.settings(4).get("gradient") in {"bias", "last_layer_weight"}:
        pytest.skip(
            "they turn autocast off for a product of matrices, and torch.autocast knows no meta device"
        )
    here, there = sample(2, weighted=True), on_meta(sample(2, weighted=True))
    for reduction in ("none", "sum", "mean"):
        for by in (case.__call__, case.by_module):
            loss = by(there, reduction=reduction)
            assert loss.device.type == "meta"
            assert loss.shape == (here.target.shape if reduction == "none" else ())
            assert torch.autograd.grad(loss.sum(), there.input)[0].shape == here.input.shape


def test_labels_are_checked_on_cuda_without_a_look() -> None:
    """On fake tensors that claim to be on a CUDA device: no GPU is needed, and reading a value would raise."""
    with FakeTensorMode(), torch.no_grad():
        logits, target = (
            torch.empty(2, 4, 3, device="cuda"),
            torch.empty(2, 3, dtype=torch.uint8, device="cuda"),
        )
        weight = torch.empty(2, 3, device="cuda")
        loss = DyCELoss()(logits, target, pixel_weight=weight)
        assert loss.device.type == "cuda"
        with pytest.raises(ValueError, match=r"squeeze\(1\)"):
            DyCELoss()(logits, target.unsqueeze(1))
