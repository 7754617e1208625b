"""Which backend runs: the only place that asks, once a call."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from classbalance_losses._validate_options import check_choice
from classbalance_losses.kernels import reference
from classbalance_losses.kernels.call import ClassSums, Hard, Labels, Logits, Pass, Share, WeightedSums
from classbalance_losses.kernels.forms.reference import AnyForm, Form
from classbalance_losses.kernels.plain import is_exporting, is_plain
from classbalance_losses.kernels.selection import Joined

BACKENDS = ("auto", "reference", "cpu", "cuda")
_FORMER = {"blocked": "cpu", "triton": "cuda"}

_CPU_FROM = 1 << 17  # full-size logits from which the compiled loops were measured to be quicker

_chosen = "auto"


class Backend(Protocol):
    """What each backend, a module, offers: the two primitives, and selection."""

    def pixel_values(self, logits: Logits, labels: Labels, form: Form) -> Tensor:
        """Return φ of each pixel (N, *), 0 where the label does not count."""

    def cross_entropy_and_error(self, logits: Logits, labels: Labels) -> tuple[Tensor, Tensor]:
        r"""Return the cross-entropy, and the constant :math:`\\lVert p_i - e_{y_i} \\rVert^2` (N, *)."""

    def values_and_overlap(
        self,
        logits: Logits,
        labels: Labels,
        form: Form | None,
        weight: Tensor | None,
        *,
        with_error: bool = False,
    ) -> Pass:
        """Return P and I of each image and class, weighted by q, and φ and the error if they are asked for."""

    def soft_cross_entropy(self, logits: Logits, target: Tensor, weight: Tensor | None) -> Tensor:
        r"""Return :math:`\sum_c w_c t_{ic} (-\log p_{ic})` (N, *) of constant label vectors t (N, C, *) without NaN."""

    def soft_sums(
        self,
        logits: Logits,
        labels: Labels,
        target: Tensor,
        form: AnyForm,
        weight: Tensor | None,
        *,
        with_error: bool = False,
        choose: Callable[[Tensor], Hard] | None = None,
    ) -> tuple[ClassSums, Hard | None]:
        r"""Return Σ t, :math:`\sum q t \varphi` and the squared error's of each row and class, or over H's pixels."""

    def class_sums(
        self,
        labels: Labels,
        value: Tensor | None = None,
        squared: Tensor | None = None,
        weight: Tensor | None = None,
        *,
        rows: int = 1,
        hard: Hard | None = None,
    ) -> ClassSums:
        """Return the sums of maps over the pixels of each row and class, (R, C)."""

    def weighted_sums(
        self,
        value: Tensor,
        labels: Labels,
        weight: Tensor | None,
        norm_weight: Tensor | None,
        pixel_weight: Tensor | None,
    ) -> WeightedSums:
        """Return a map's sum under weights of classes and pixels, and the mean."""

    def kth_largest(
        self, ranked: Tensor, labels: Labels, rows: int, share: Share, joined: Joined | None
    ) -> Hard:
        """Return each row's pixels with the largest values."""

    def project(
        self, squared: Tensor, number: Tensor, regularization: float, *, present: bool, by_number: bool
    ) -> Tensor:
        r"""Return GBW's class weights (C,) from each class's :math:`\sum \lVert q \delta \rVert^2` and pixels."""

    def error_sums(self, logits: Logits, labels: Labels, weight: Tensor | None, *, squared: bool) -> Tensor:
        r"""Return :math:`\sum_{y_i = a} q_i \delta_{ib}`, or of :math:`\delta_{ib}^2`, (C, C), a constant."""


class use_backend:  # noqa: N801 - a setter that is a context manager too, as torch.no_grad is
    """Choose what computes the losses, for this process: as a setter, or as a context manager.

    ============= ==============================================================================================
    "auto"        The fastest that can take the input and works here: "cpu" from a hundred thousand logits on,
                  "cuda" on CUDA; the reference for ``torch.func`` transforms, forward-mode tangents, tensor
                  subclasses, float64, learned weights and ``torch.export``.
    "reference"   Plain PyTorch, everywhere.
    "cpu"         Loops that numba compiles, from the extra ``[numba]``: full-size probabilities never exist.
    "cuda"        Triton kernels for CUDA, from the extra ``[triton]``.
    ============= ==============================================================================================

    All give the same loss and gradient up to rounding. Double backward, batched gradients and gradients of learned
    weights work with each: what a fast path lacks, the reference computes. The loops and kernels stay in the graph of
    ``torch.compile``.

    The former names "blocked" and "triton" mean "cpu" (without numba: "reference") and "cuda" until 0.3.0, and warn.

    Raises:
        ValueError: for an unknown name; and when a loss is called on input that the chosen backend cannot take,
            with the reasons.

    Examples:
        >>> with use_backend("reference"):
        ...     loss = criterion(logits, target)
        >>> use_backend("auto")  # from here on
    """

    def __init__(self, name: str) -> None:
        global _chosen  # noqa: PLW0603 - one setting a process, like torch.backends
        self.name = name
        if name in _FORMER:
            self.name = "reference" if name == "blocked" and not _HAS["cpu"] else _FORMER[name]
            warnings.warn(
                f'use_backend("{name}") is called use_backend("{self.name}") now; the former name will go in 0.3.0.',
                FutureWarning,
                stacklevel=2,
            )
        check_choice("backend", self.name, BACKENDS)
        self._previous = _chosen
        _chosen = self.name

    def __enter__(self) -> None:
        """Keep the choice until the block ends."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Go back to the former choice."""
        global _chosen  # noqa: PLW0603
        _chosen = self._previous

    def __repr__(self) -> str:
        return f"use_backend({self.name!r})"


def backend_for(logits: Logits, labels: Labels, *others: Tensor | None, constant: bool = True) -> Backend:
    """Return the backend for a call on logits and labels, and other tensors beside them.

    ``constant`` says that no weight is learned: the reference alone differentiates those.

    Raises:
        ValueError: if the backend that the user chose cannot take the tensors.
    """
    if not constant:
        return reference
    size = labels.target.numel() * labels.num_classes
    return _backend(logits, labels, size, _reasons_against_memory(logits.input, labels.target, *others))


def backend_for_maps(labels: Labels, *others: Tensor | None) -> Backend:
    """Return the backend for sums over classes of maps alone; logits stand behind each pixel."""
    reasons = _reasons_against_memory(labels.target, *others)
    if any(other is not None and other.dtype != torch.float32 for other in others):
        reasons.append("a map is not float32")
    return _backend(None, labels, labels.target.numel() * labels.num_classes, reasons)


def look_at_shares(target: Tensor) -> tuple[float, float, Tensor] | None:
    """Return bounds of label vectors (N, C, *) and their sums (N, *) by one loop; ``None`` where it cannot run."""
    if target.ndim < 2 or not _can_be_looked_at(target, target.numel()):
        return None
    from classbalance_losses.kernels.cpu.shares import looked_at  # noqa: PLC0415

    return looked_at(target)


def whole_labels(target: Tensor) -> Tensor | None:
    """Return labels that are 0, 1 or NaN as bytes, NaN as ``NARROW``; ``None`` of others, or where no loop can run."""
    if target.requires_grad or not _can_be_looked_at(target, 2 * target.numel()):
        return None
    from classbalance_losses.kernels.cpu.shares import whole  # noqa: PLC0415

    return whole(target)


def _can_be_looked_at(target: Tensor, size: int) -> bool:
    """Whether a loop can read shares, and is worth it for so many logits."""
    if size < _CPU_FROM or target.dtype != torch.float32 or not target.is_contiguous():
        return False
    return is_eager_on_cpu(target) and _chosen != "cuda" and _HAS["cpu"] and _failure("cpu", "cpu") is None


def is_eager_on_cpu(*tensors: Tensor) -> bool:
    """Whether shapes may depend on values, and torch's kernels without a rule for transforms may run."""
    return (
        _chosen != "reference"
        and all(tensor.device.type == "cpu" for tensor in tensors)
        and not torch.compiler.is_compiling()
        and is_plain(*tensors)
    )


def _backend(logits: Logits | None, labels: Labels, size: int, reasons: list[str]) -> Backend:
    device = labels.target.device.type
    name = _chosen if _chosen != "auto" else device
    if name not in ("cpu", "cuda"):
        return reference
    if _chosen == "auto":
        # An exported program runs where this library is not.
        if reasons or (name == "cpu" and size < _CPU_FROM) or is_exporting():
            return reference
        return reference if _reasons(name, logits, labels) else _module(name)
    if reasons := reasons + _reasons(name, logits, labels):
        raise ValueError(f'The backend "{name}" cannot run: {"; ".join(reasons)}. Use use_backend("auto").')
    return _module(name)


def _reasons_against_memory(*tensors: Tensor | None) -> list[str]:
    """Why the reference alone can take the tensors, on any device."""
    if torch.compiler.is_compiling():
        is_memory = not torch._C._are_functorch_transforms_active()
    else:
        is_memory = is_plain(*(tensor for tensor in tensors if tensor is not None))
    if is_memory:
        return []
    return ["a tensor is inside a transform of torch.func, a subclass, or has a forward-mode tangent"]


_HAS = {"cpu": find_spec("numba") is not None, "cuda": find_spec("triton") is not None}
_EXTRA = {"cpu": "numba", "cuda": "triton"}


def _reasons(name: str, logits: Logits | None, labels: Labels) -> list[str]:
    """Why a backend cannot run here, or not on these tensors."""
    device = name if name == "cpu" else str(labels.target.device)
    is_tried = name == "cpu" or labels.target.is_cuda  # kernels that are interpreted need no device
    failure = why_not(name, device) if is_tried or not _HAS[name] else None
    if failure is not None:
        return [failure]
    reasons: list[str] = _package(name).reasons(logits, labels)
    return reasons


def why_not(name: str, device: str) -> str | None:
    """Why a backend cannot run on a device; ``None`` where it can."""
    if not _HAS[name]:
        return f"{_EXTRA[name]} is not installed (pip install 'classbalance_losses[{_EXTRA[name]}]')"
    return _failure(name, device)


def _module(name: str) -> Backend:
    return cast("Backend", _package(name))


def _package(name: str) -> Any:
    # Here and not above, for numba and triton are optional, and slow to import.
    if name == "cpu":
        from classbalance_losses.kernels import cpu  # noqa: PLC0415

        return cpu
    from classbalance_losses.kernels import cuda  # noqa: PLC0415

    return cuda


def _failure(name: str, device: str) -> str | None:
    """Why a backend whose package is installed cannot run there."""
    return _tried(name, device)


# What torch.compiler.assume_constant_result does, which would import the compiler: a graph has the answer, not the try.
_failure._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _tried(name: str, device: str) -> str | None:
    """Try a backend once for each device, and warn if it does not work."""
    try:
        failure: str | None = _package(name).failure(torch.device(device))
    except (ImportError, RuntimeError, OSError) as error:
        failure = f"{type(error).__name__}: {error}"
    if failure is None:
        return None
    remedy = {
        "cpu": "Update numba and numpy together (pip install -U numba numpy), or uninstall numba.",
        "cuda": "Triton needs a C compiler and Python's headers (gcc and python3-dev), and a device of compute "
        "capability 7.5 or more.",
    }[name]
    warnings.warn(
        f"{_EXTRA[name]} is installed and does not work on {device}, so the losses run there in plain PyTorch, which "
        f'is slower: {failure}. {remedy} With use_backend("reference") this is not tried.',
        stacklevel=2,
    )
    return failure
