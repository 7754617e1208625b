"""Who competes: the library by backend, plain torch, and the compiled variants of both."""

from __future__ import annotations

import operator
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import reduce
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import classbalance_losses
from benchmarks.speed import formulas
from benchmarks.speed.inputs import IGNORE_INDEX, SMOOTHING, Pixels

Step = Callable[[], Tensor]
BACKENDS = ("reference", "cpu", "cuda")
FAST = BACKENDS[1:]


class Skipped(Exception):  # noqa: N818
    """A contender cannot run here; the message says why."""


@dataclass(frozen=True)
class Contender:
    """A name, and how to make the forward step out of a problem.

    ``origin`` is "ours", "torch", "peer" (their released code) or "formula" (their published formula, written
    anew for this benchmark). ``loss`` is the public loss of this library that it covers.
    """

    name: str
    build: Callable[[Any], Step]
    origin: str = "ours"
    loss: str = ""
    backend: str = ""

    @contextmanager
    def context(self) -> Iterator[None]:
        """What a step runs in."""
        with classbalance_losses.use_backend(self.backend) if self.backend else nullcontext():
            yield


def ours(loss: str, backend: str, *, title: str = "", **options: Any) -> Contender:
    """One of the library's losses on logits on one backend, or the sum of several: "DyCELoss + DiceLoss"."""

    def build(problem: Pixels) -> Step:
        criterion = _criterion(loss, backend, problem, options | _upsampling(problem))
        return lambda: criterion(problem.input, problem.target)

    covered = "SumLoss" if " + " in loss else loss
    return Contender(f"{title or loss}, {backend}", build, loss=covered, backend=backend)


def ours_interpolated(loss: str, backend: str) -> Contender:
    """The same after ``F.interpolate``, which makes the logits at full size."""

    def build(problem: Pixels) -> Step:
        criterion = _criterion(loss, backend, problem, {})
        return lambda: criterion(formulas.full_size(problem), problem.target)

    return Contender(f"F.interpolate + {loss}, {backend}", build, loss=loss, backend=backend)


def on_every_backend(loss: str, *, title: str = "", **options: Any) -> tuple[Contender, ...]:
    """The same loss on each backend."""
    return tuple(ours(loss, backend, title=title, **options) for backend in BACKENDS)


def _criterion(loss: str, backend: str, problem: Pixels, options: dict[str, Any]) -> nn.Module:
    require_backend(backend, problem.input.device)
    kinds = (getattr(classbalance_losses, kind) for kind in loss.split(" + "))
    criterion: nn.Module = reduce(
        operator.add, [kind(ignore_index=IGNORE_INDEX, **options) for kind in kinds]
    )
    return criterion.to(problem.input.device)


def compiled(contender: Contender) -> Contender:
    """The same through ``torch.compile(fullgraph=True)``; loops and kernels stay in the graph."""

    def build(problem: Any) -> Step:
        require_compiler(next(iter(problem.tensors.values())).device)
        torch.compiler.reset()
        return torch.compile(contender.build(problem), fullgraph=True, dynamic=False)

    return replace(contender, name=f"{contender.name}, torch.compile", build=build)


def _cross_entropy(problem: Pixels) -> Step:
    """In float32, as autocast runs it: in bfloat16 its mean over a large map is wrong by per cents."""
    logits, target = problem.input, problem.target
    return lambda: F.cross_entropy(logits.float(), target, ignore_index=IGNORE_INDEX)


def _raw_cross_entropy(problem: Pixels) -> Step:
    logits, target = problem.input, problem.target
    if logits.dtype == torch.float32:
        raise Skipped("the same as the baseline in float32")
    return lambda: F.cross_entropy(logits, target, ignore_index=IGNORE_INDEX)


def _smoothed_cross_entropy(problem: Pixels) -> Step:
    logits, target = problem.input, problem.target
    options: dict[str, Any] = {"ignore_index": IGNORE_INDEX, "label_smoothing": SMOOTHING}
    return lambda: F.cross_entropy(logits.float(), target, **options)


def _interpolated_cross_entropy(problem: Pixels) -> Step:
    return lambda: F.cross_entropy(
        formulas.full_size(problem).float(), problem.target, ignore_index=IGNORE_INDEX
    )


def _binary_cross_entropy(problem: Pixels) -> Step:
    logits, target = problem.input, problem.target.unsqueeze(1).float()
    return lambda: F.binary_cross_entropy_with_logits(logits.float(), target)


def _soft_cross_entropy(problem: Pixels) -> Step:
    return lambda: F.cross_entropy(problem.input.float(), problem.target)


CROSS_ENTROPY = Contender("F.cross_entropy", _cross_entropy, origin="torch")
INTERPOLATED = Contender("F.interpolate + F.cross_entropy", _interpolated_cross_entropy, "torch")
RAW_CROSS_ENTROPY = Contender("F.cross_entropy on half logits", _raw_cross_entropy, origin="torch")
BINARY_CROSS_ENTROPY = Contender("F.binary_cross_entropy_with_logits", _binary_cross_entropy, origin="torch")
SOFT_CROSS_ENTROPY = Contender("F.cross_entropy of probabilities", _soft_cross_entropy, origin="torch")
SMOOTHED = Contender("F.cross_entropy, smoothed", _smoothed_cross_entropy, origin="torch")


def require_backend(backend: str, device: torch.device) -> None:
    """Raise Skipped where a backend does not exist, or cannot run on the device."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if backend in ("", "reference"):
        return
    if backend == "cuda" and device.type != "cuda" and not interpreted:
        raise Skipped("the kernels need a CUDA device")
    if backend == "cpu" and device.type != "cpu":
        raise Skipped("the loops are the CPU's")
    if backend == "cpu" and find_spec("numba") is None:
        raise Skipped("numba is not installed: pip install '.[numba]'")


def require_compiler(device: torch.device) -> None:
    """Raise Skipped where ``torch.compile`` has nothing to compile with."""
    compilers = (os.environ.get("CXX", "g++"), "clang++")
    if device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise Skipped("torch.compile needs a C++ compiler on the CPU")


def _upsampling(problem: Pixels) -> dict[str, Any]:
    """The options that make a loss take coarse logits."""
    return {} if problem.size is None else {"upsample": "linear"}
