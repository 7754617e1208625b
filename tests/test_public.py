"""What everything public can do besides its work: be typed, pickled, deep-copied and printed."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import pkgutil
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from cases import CASES, FUNCTIONS
from torch import nn

import classbalance_losses as cb
from classbalance_losses import adapters, functional, stats, testing


def namespaces() -> list[ModuleType]:
    """Every module with public names; of the adapters, those whose framework is installed."""
    found = [cb, functional, testing, stats]
    for module in pkgutil.iter_modules(adapters.__path__):
        if not module.name.startswith("_"):
            try:
                found.append(importlib.import_module(f"classbalance_losses.adapters.{module.name}"))
            except ImportError as error:
                assert "pip install" in str(error)  # noqa: PT017 - ours, not one of the framework's own
    return found


def public() -> dict[str, Any]:
    """Return the classes and functions of those modules by their full names."""
    names: dict[str, Any] = {}
    for space in namespaces():
        own = [
            name for name, value in vars(space).items() if getattr(value, "__module__", "") == space.__name__
        ]
        for name in getattr(space, "__all__", own):
            value = getattr(space, name)
            if not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value)):
                names[f"{space.__name__}.{name}"] = value
    return names


PUBLIC = public()


def callables(owner: Any) -> Iterator[Callable[..., Any]]:
    """Yield a function, or a class and all that its bases in this package define."""
    yield owner
    for base in inspect.getmro(owner) if inspect.isclass(owner) else ():
        if base.__module__.startswith("classbalance_losses"):
            for value in vars(base).values():
                function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
                if inspect.isfunction(function):
                    yield function


@pytest.mark.parametrize("name", PUBLIC)
def test_type_hints_can_be_resolved(name: str) -> None:
    for function in callables(PUBLIC[name]):
        assert isinstance(typing.get_type_hints(function), dict)


@pytest.mark.parametrize("name", PUBLIC)
def test_names_are_pickled_and_copied_by_reference(name: str) -> None:
    value = PUBLIC[name]
    assert pickle.loads(pickle.dumps(value)) is value
    assert copy.deepcopy(value) is value
    assert name.rpartition(".")[2] in repr(value)


def losses() -> list[nn.Module]:
    """Every row of the case table as a module, and the losses that have no row."""
    rows = [case.module(**case.settings(4)) for case in CASES]
    rows += [cb.DyCELoss() + 0.5 * cb.DiceLoss(), cb.DeepSupervision(cb.FocalLoss(), [1.0, 0.5])]
    made = {*FUNCTIONS, "SumLoss"}
    others = [getattr(cb, name) for name in cb.__all__ if name.endswith("Loss") and name not in made]
    takes_classes = {"num_classes": 4}
    return [
        *rows,
        *(
            kind(**takes_classes if "num_classes" in inspect.signature(kind).parameters else {})
            for kind in others
        ),
        cb.DyCELoss(upsample="linear", align_corners=True, reduction="none", process_group="world"),
    ]


def estimators() -> list[nn.Module]:
    kinds = (cb.PixelFrequency, cb.MedianFrequency, cb.ImageFrequency, cb.EffectiveNumber)
    counting = [kind(accumulate=how) for kind in kinds for how in ("batch", "running")]
    return [*counting, cb.LossBased(), cb.LossBased(momentum=0.9), cb.Curriculum()]


def adapted() -> list[Any]:
    made: list[Any] = [
        importlib.import_module("classbalance_losses.adapters.huggingface").ComputeLoss(cb.DyCELoss())
    ]
    for name, make in (
        ("monai", lambda module: module.MonaiLoss(cb.FocalLoss() + cb.DiceLoss(), head_weights=[1.0, 0.5])),
        ("mmengine", lambda module: module.MMSegLoss(cb.GBWLoss(), loss_weight=0.5)),
        ("lightning", lambda module: module.ClassBalanceLogger(["road", "pole"])),
    ):
        if f"classbalance_losses.adapters.{name}" in sys.modules:
            made.append(make(sys.modules[f"classbalance_losses.adapters.{name}"]))
    return made


def instances() -> list[Any]:
    chosen = cb.use_backend("auto")
    statistics = cb.ClassStatistics(4, ignore_index=255)
    statistics.update(torch.randint(4, (2, 5)))
    report = testing.check_loss(nn.functional.cross_entropy, only=["shift"], dims=[0])
    problem = testing.Problem(torch.randn(1, 3, 2), torch.zeros(1, 2).long())
    return [*losses(), *estimators(), *adapted(), statistics, chosen, report, *report, problem, *testing.LAWS]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))], ids=["copy", "pickle"]
)
def test_instances_can_be_copied_and_printed(copied: Callable[[Any], Any]) -> None:
    for value in instances():
        again = copied(value)
        assert type(again) is type(value)
        if type(value).__repr__ is not object.__repr__:
            assert repr(again) == repr(value)
        assert str(value)
        if isinstance(value, nn.Module):
            ours, theirs = value.state_dict(), again.state_dict()
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in ours), value


def test_imports_where_torch_has_no_distributed() -> None:
    """Some builds of torch have none: the losses work, alone, and their type hints are still there."""
    code = """
import torch.distributed, typing
torch.distributed.is_available = lambda: False
del torch.distributed.ProcessGroup, torch.distributed.group
import classbalance_losses as cb
loss = cb.DyCELoss(process_group="world")(torch.zeros(1, 2, 3), torch.zeros(1, 3).long())
typing.get_type_hints(cb.DyCELoss.__init__)
print(round(float(loss), 4))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, "0.6931"), run.stderr
