"""Each pair of calls on the page *Migrating* gives what its row says, in value and gradient."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from migration_peers import PEERS
from torch import Tensor, nn

import classbalance_losses

PAGE = (Path(__file__).parents[1] / "docs" / "migrating.md").read_text(encoding="utf-8")
CODE = r"`([^`]+)`"
ROW = re.compile(rf"^\| {CODE} \| {CODE} \| {CODE}", re.MULTILINE)
PAIRS = ROW.findall(PAGE)
INSTALLED = ("monai", "kornia")


def names(ignored: bool) -> dict[str, Any]:
    """What the page's calls are made of: logits, labels of which class 4 has none, and the numbers of its factors."""
    torch.manual_seed(0)
    z = torch.randn(2, 5, 6, 8, dtype=torch.float64, requires_grad=True)
    y = torch.arange(96).view(2, 6, 8) % 4
    hot = F.one_hot(y, 5).movedim(-1, 1)
    if ignored:
        y[0, :2] = 255
    valid = y != 255
    own = {
        "z": z,
        "y": y,
        "t": torch.where(valid.unsqueeze(1), hot, 255),
        "s": torch.rand(2, 5, 6, 8, dtype=torch.float64).softmax(1),
        "b": z[:, :1],
        "m": (y == 1).long(),
        "small": z[:, :, ::2, ::2],
        "w": torch.tensor([0.5, 1.0, 2.0, 3.0, 1.5], dtype=torch.float64),
        "valid": int(valid.sum()),
        "V": valid.double().mean(),
    }
    public = {name: getattr(classbalance_losses, name) for name in classbalance_losses.__all__}
    return {
        **public,
        **PEERS,
        **own,
        "N": 2,
        "C": 5,
        "H": 6,
        "W": 8,
        "K": 4,
        "F": F,
        "nn": nn,
        "torch": torch,
    }


@pytest.mark.parametrize(("theirs", "ours", "factor"), PAIRS, ids=[theirs for theirs, _, _ in PAIRS])
def test_a_pair_of_calls_is_what_its_row_says(theirs: str, ours: str, factor: str) -> None:
    here = names("255" in theirs)
    for package in INSTALLED:
        if theirs.startswith(package):
            here[package] = pytest.importorskip(package)
            importlib.import_module(f"{package}.losses")
    found, expected = eval(theirs, here), eval(factor, here) * eval(ours, here)
    torch.testing.assert_close(found.double(), expected.double(), rtol=2e-5, atol=1e-7)
    torch.testing.assert_close(slope(found, here["z"]), slope(expected, here["z"]), rtol=2e-4, atol=1e-7)


def slope(loss: Tensor, z: Tensor) -> Tensor:
    return torch.autograd.grad(loss, z)[0]


def test_every_row_of_the_page_is_read() -> None:
    rows = [line for line in PAGE.splitlines() if re.match(r"\| `\w+(\.\w+)*\(", line)]
    assert len(rows) == len(PAIRS) > 30
    assert {theirs.partition(".")[0] for theirs, _, _ in PAIRS} == {"nn", *PEERS, *INSTALLED}
