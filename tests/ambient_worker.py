"""What ``test_ambient.py`` runs in a process of its own, for what it looks for may write where it has no business.

Every call of ``calls.py`` is run as usual, and then in each setting: the same tensors have to come out. A line of JSON
says of a setting what did not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from calls import Call, all_calls
from torch import Tensor

Tensors = dict[str, Tensor]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    yield
    torch.set_default_device(None)


@contextmanager
def threads(number: int) -> Iterator[None]:
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(1)


@contextmanager
def deterministic() -> Iterator[None]:
    """Fresh memory is full of NaN, then."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


SETTINGS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "float64": lambda: default_dtype(torch.float64),
    "meta": lambda: default_device("meta"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "deterministic": deterministic,
    "two threads": lambda: threads(2),
}


def differences(name: str, came: Tensors, usual: Tensors, *, has_gradients: bool) -> Iterator[str]:
    """Say which tensors differ; without gradients only the first value is the same, for nothing is remembered."""
    wanted = usual if has_gradients else {"value 0": usual["value 0"]}
    for key in wanted.keys() | came.keys() if has_gradients else wanted:
        if key not in came or key not in usual:
            yield f"{name}, {key}: there in one alone"
        elif (came[key].dtype, came[key].device) != (usual[key].dtype, usual[key].device):
            yield f"{name}, {key}: {came[key].dtype} on {came[key].device} for {usual[key].dtype}"
        elif not torch.allclose(came[key], usual[key], rtol=1e-5, atol=1e-6, equal_nan=True):
            gap = (came[key] - usual[key]).abs().max().item()
            yield f"{name}, {key}: {gap} away"


def run(call: Call) -> Tensors | str:
    try:
        return call.run()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    calls = all_calls()
    usual = {call.name: call.run() for call in calls}
    for setting, around in SETTINGS.items():
        with around():
            came = {call.name: run(call) for call in calls}
            has_gradients = torch.is_grad_enabled()
        found: list[str] = []
        for name, tensors in came.items():
            if isinstance(tensors, str):
                found.append(f"{name}: {tensors}")
            else:
                found += differences(name, tensors, usual[name], has_gradients=has_gradients)
        print(json.dumps({setting: found}), flush=True)


if __name__ == "__main__":
    main()
