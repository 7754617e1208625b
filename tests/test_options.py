"""The options that all losses on logits share, written once: what help, tools, type checkers and callers see."""

from __future__ import annotations

import inspect
import pydoc
import re
import subprocess
import sys
import typing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_package import PIXEL_LOSSES

import classbalance_losses as cb
from classbalance_losses import functional
from classbalance_losses._options import DEFAULTS, Common
from classbalance_losses.losses._base import PixelLoss
from classbalance_losses.testing.subject import subject_of

ROOT = Path(__file__).parent.parent
SHARED = {
    "task": "multiclass",
    "upsample": None,
    "align_corners": False,
    "ignore_index": -100,
    "reduction": "mean",
    "process_group": None,
}
CLASSES = [getattr(cb, name) for name in PIXEL_LOSSES]
FUNCTIONS = [getattr(functional, name) for name in PIXEL_LOSSES.values()]
REQUIRED: dict[str, dict[str, Any]] = {
    name: {"prior": [1.0, 2.0, 3.0]} for name in ("LogitAdjustedLoss", "logit_adjusted_loss")
}
EVERY = pytest.mark.parametrize("loss", [*CLASSES, *FUNCTIONS], ids=lambda loss: loss.__name__)


def shared(loss: Callable[..., Any]) -> list[inspect.Parameter]:
    return [p for name, p in inspect.signature(loss).parameters.items() if name in SHARED]


def test_the_table_has_every_loss_on_logits() -> None:
    public = {
        name
        for name in cb.__all__
        if isinstance(kind := getattr(cb, name), type) and issubclass(kind, PixelLoss)
    }
    assert public == set(PIXEL_LOSSES)


@EVERY
def test_signatures_show_the_options(loss: Callable[..., Any]) -> None:
    """Of classes and functions alike, down to the types."""
    parameters = shared(loss)
    assert {p.name: p.default for p in parameters} == SHARED
    assert {p.kind for p in parameters} == {inspect.Parameter.KEYWORD_ONLY}
    assert parameters == shared(cb.DyCELoss)
    hints = typing.get_type_hints(Common)
    assert {p.name: p.annotation for p in parameters} == hints
    assert all(
        p.kind is not inspect.Parameter.VAR_KEYWORD for p in inspect.signature(loss).parameters.values()
    )


@EVERY
def test_help_shows_the_options(loss: Callable[..., Any]) -> None:
    text = pydoc.render_doc(loss, renderer=pydoc.plaintext)
    for name, default in SHARED.items():
        assert re.search(rf"\b{name}: [^\n]* = {default!r}", text), name


@EVERY
def test_type_hints_can_be_read(loss: Callable[..., Any]) -> None:
    hints = typing.get_type_hints(loss.__init__ if isinstance(loss, type) else loss)
    assert hints["return"] in (torch.Tensor, type(None))
    assert typing.get_type_hints(Common).keys() == SHARED.keys() == DEFAULTS.keys()


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_tool_can_build_a_loss_from_its_signature(kind: type[PixelLoss]) -> None:
    """As command lines and configuration files do: each option by its name, at its default."""
    required = REQUIRED.get(kind.__name__, {})
    options = {name: p.default for name, p in inspect.signature(kind).parameters.items()} | required
    built, plain = kind(**options), kind(**required)
    assert repr(built) == repr(plain)
    assert built.common == plain.common == SHARED
    changed = kind(
        **{**options, "ignore_index": 255, "reduction": "sum", "upsample": "linear", "align_corners": True}
    )
    assert changed.common == {
        **SHARED,
        "ignore_index": 255,
        "reduction": "sum",
        "upsample": "linear",
        "align_corners": True,
    }


@EVERY
def test_the_laws_for_anybodys_loss_find_the_options(loss: Callable[..., Any]) -> None:
    found = subject_of(loss, num_classes=3, dims=(2,), options=None, ignore_index=None, neutral=False)
    assert {"ignore_index", "reduction", "process_group", "pixel_weight"} <= found.options


@EVERY
def test_an_option_that_there_is_not(loss: Callable[..., Any]) -> None:
    call = () if isinstance(loss, type) else (torch.zeros(1, 3, 2), torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'gama'") as raised:
        loss(*call, gama=2.0, **REQUIRED.get(loss.__name__, {}))
    assert all(name in str(raised.value) for name in SHARED)
    if isinstance(loss, type):
        assert all(name in str(raised.value) for name in inspect.signature(loss).parameters)
    with pytest.raises(TypeError, match="positional argument"):
        loss(*call, None, None, 255)  # none is positional


RIGHT = """
from torch import Tensor
from classbalance_losses import DyCELoss, WeightedCrossEntropyLoss
from classbalance_losses.functional import dyce_loss

DyCELoss(omega=0.5, ignore_index=255, reduction="sum", process_group="world", upsample=None)
WeightedCrossEntropyLoss([1.0, 2.0], align_corners=True)


def loss(input: Tensor, target: Tensor) -> Tensor:
    return dyce_loss(input, target, ignore_index=255, upsample="linear")
"""
WRONG = """
from torch import Tensor
from classbalance_losses import FocalLoss
from classbalance_losses.functional import focal_loss

FocalLoss(reduction=3)
FocalLoss(gama=2.0)


def loss(input: Tensor, target: Tensor) -> Tensor:
    return focal_loss(input, target, reduction=3) + focal_loss(input, target, gama=2.0)
"""
CONFIGURATION = """
[mypy]
strict = True
follow_imports = silent
[mypy-torch.*,numpy.*]
follow_imports = skip
"""  # torch's own types take a minute to read


def test_type_checkers_see_the_options(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed")
    for name, text in {"right.py": RIGHT, "wrong.py": WRONG, "mypy.ini": CONFIGURATION}.items():
        (tmp_path / name).write_text(text)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        "mypy.ini",
        "--no-error-summary",
        "right.py",
        "wrong.py",
    ]
    environment = {"MYPYPATH": str(ROOT), "PATH": ""}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    said = [line for line in run.stdout.splitlines() if ": error:" in line]
    assert all(line.startswith("wrong.py") for line in said), run.stdout
    lines = WRONG.splitlines()
    places = [int(line.split(":")[1]) for line in said]
    assert [lines[place - 1] for place in places] == [lines[5], lines[6], *[lines[10]] * 2]
    assert sum("[arg-type]" in line and '"reduction"' in line for line in said) == 2
    assert sum("[call-arg]" in line and '"gama"' in line for line in said) == 2


LATER = [
    (cb.DyCELoss, "hard_fraction", 0.0),
    (cb.DyCELoss, "scope", "img"),
    (cb.FocalLoss, "gamma", -1.0),
    (cb.DualFocalLoss, "rho", 0.5),
    (cb.DualCrossEntropyLoss, "alpha", 0.0),
    (cb.WeightedCrossEntropyLoss, "normalize", "pixel"),
    (partial(cb.LogitAdjustedLoss, [1.0, 2.0, 3.0]), "tau", -1.0),
    (cb.GBWLoss, "regularization", 0.0),
    (cb.GBWLoss, "apply_to", "classes"),
    (cb.GBWLoss, "momentum", 0.9),  # with nothing to remember by
    (cb.DiceLoss, "classes", "al"),
]


@pytest.mark.parametrize(("make", "name", "value"), LATER, ids=lambda part: str(part)[:40])
def test_an_option_that_is_assigned_later_is_checked(make: Callable[..., Any], name: str, value: Any) -> None:
    """Schedules assign options: one that overshoots must not train another loss, alone or in a sum."""
    batch = torch.randn(2, 3, 4), torch.randint(0, 3, (2, 4))
    alone, other = make(), make()
    both = other + cb.DiceLoss()
    for loss in (alone, other):
        setattr(loss, name, value)
    for loss in (alone, both):
        with pytest.raises(ValueError, match=r"Expected|remember"):
            loss(*batch)


def test_weights_that_are_assigned_later_are_checked() -> None:
    both = cb.DyCELoss() + cb.DiceLoss()
    for weights in ((1.0,), (1.0, 1.0, 1.0), (1.0, -0.5)):
        with pytest.raises(ValueError, match="Expected"):
            both.weights = weights
    both.weights = [2, 0.5]
    assert both.weights == (2.0, 0.5)
    deep = cb.DeepSupervision(cb.DyCELoss())
    deep.weights = torch.tensor([1.0, 0.5])
    assert deep.weights == (1.0, 0.5)
    with pytest.raises(ValueError, match="weight of an output"):
        deep.weights = (1.0, -1.0)
