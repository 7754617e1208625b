"""Every tensor that the package makes names its dtype and device: nothing hangs on torch's defaults."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import classbalance_losses

FACTORIES = {
    *(
        "arange",
        "as_tensor",
        "asarray",
        "empty",
        "empty_strided",
        "eye",
        "full",
        "linspace",
        "logspace",
        "ones",
    ),
    *("rand", "randint", "randn", "randperm", "range", "scalar_tensor", "tensor", "tril_indices"),
    *("triu_indices", "zeros"),
}
LEGACY = {"Tensor", "BFloat16Tensor", "DoubleTensor", "FloatTensor", "HalfTensor"}
SOURCES = sorted(Path(classbalance_losses.__file__).parent.rglob("*.py"))


def silent(source: str) -> Iterator[int]:
    """Yield the lines of calls that make a tensor without both names; `*_like` and `new_*` take them from another."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if not isinstance(node.func.value, ast.Name) or node.func.value.id != "torch":
            continue
        named = {keyword.arg for keyword in node.keywords}
        if node.func.attr in LEGACY or (node.func.attr in FACTORIES and not {"dtype", "device"} <= named):
            yield node.lineno


def test_every_tensor_names_its_dtype_and_device() -> None:
    assert not [f"{path}:{line}" for path in SOURCES for line in silent(path.read_text())]


@pytest.mark.parametrize(
    "line", ["torch.zeros(3)", "torch.full((), 1.0, device=d)", "torch.arange(3, dtype=t)", "torch.Tensor(3)"]
)
def test_a_silent_one_is_seen(line: str) -> None:
    assert list(silent(f"x = {line}")) == [1]
    assert not list(silent("torch.zeros(3, dtype=t, device=d), x.new_zeros(3), torch.zeros_like(x)"))
