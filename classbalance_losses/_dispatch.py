"""Which backend runs: the only place that asks.

"reference" is plain PyTorch, "blocked" goes over the pixels in cache-sized blocks on the CPU, "triton" has kernels
for CUDA. The reference is what the others are tested against.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from types import TracebackType

import torch
from torch import Tensor

from classbalance_losses._validate import can_read_values, check_choice
from classbalance_losses.kernels.plain import is_plain

Reasons = Callable[[], list[str]]

BACKENDS = ("auto", "reference", "blocked", "triton")

_HAS_TRITON = find_spec("triton") is not None

_chosen = "auto"


class use_backend:  # noqa: N801 - a setter that is a context manager too, as torch.no_grad is
    """Choose what computes the losses, for this process: as a setter, or as a context manager.

    ============= ==============================================================================================
    "auto"        The fastest that can take the input: on the CPU "blocked" from a hundred thousand logits on with
                  numba, half a million without; on CUDA "triton" where it is installed and works; the reference
                  inside ``torch.compile`` (the compiler fuses it) and ``torch.func`` transforms, for
                  forward-mode tangents and for tensor subclasses.
    "reference"   Plain PyTorch, everywhere.
    "blocked"     Blocks of pixels that fit a CPU's cache: full-size probabilities never exist. In loops that numba
                  compiles, from the extra ``[numba]``; where it is absent, in functions of torch's.
    "triton"      Kernels for CUDA, from the extra ``[triton]``.
    ============= ==============================================================================================

    All give the same loss and gradient up to rounding. Double backward, batched gradients and gradients of learned
    weights work with each: what a fast path lacks, the reference computes.

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
        check_choice("backend", name, BACKENDS)
        self.name = name
        self._previous = _chosen
        _chosen = name

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


def backend_for(
    tensor: Tensor,
    *others: Tensor,
    size: int | None = None,
    blocked_from: int,
    unsupported: Reasons | None = None,
) -> str:
    """Return "reference", "blocked" or "triton" for an operation on ``tensor``, and on ``others`` beside it.

    ``size`` is the number of entries that the operation goes over, where it is not the tensor's own, and
    ``blocked_from`` the size from which its blocks cost less than they save.
    ``unsupported`` gives the reasons why its Triton kernel cannot run; ``None``: any tensor on the device will do.

    Raises:
        ValueError: if the backend that the user chose cannot take the tensor.
    """
    if _chosen == "reference":
        return "reference"
    if _chosen == "blocked":
        return _required("blocked", _not_blocked(tensor, *others))
    if _chosen == "triton":
        return _required("triton", _not_triton(unsupported, tensor, *others))
    if tensor.device.type == "cuda":
        left_to_the_compiler = torch.compiler.is_compiling()
        return "reference" if left_to_the_compiler or _not_triton(unsupported, tensor, *others) else "triton"
    size = tensor.numel() if size is None else size
    return "blocked" if size >= blocked_from and not _not_blocked(tensor, *others) else "reference"


def _required(name: str, reasons: list[str]) -> str:
    if reasons:
        raise ValueError(f'The backend "{name}" cannot run: {"; ".join(reasons)}. Use use_backend("auto").')
    return name


def _not_blocked(*tensors: Tensor) -> list[str]:
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return [f"it needs a tensor on the CPU, got one on {tensor.device}"]
    if not can_read_values(tensors[0]):
        return ["it runs eagerly, outside torch.compile and torch.func"]
    return _more_than_memory(*tensors)


def _more_than_memory(*tensors: Tensor) -> list[str]:
    """Why the reference alone can take the tensors, on any device."""
    if torch.compiler.is_compiling() or is_plain(*tensors):
        return []
    return ["a tensor is inside a transform of torch.func, a subclass, or has a forward-mode tangent"]


@cache
def _triton_failure(device: torch.device) -> str | None:
    """Why Triton, which is installed, cannot run there: tried once for each device, and said by a warning."""
    try:
        from classbalance_losses.kernels import triton_probe  # noqa: PLC0415 - an optional dependency
    except ImportError as error:
        failure: str | None = f"{type(error).__name__}: {error}"
    else:
        failure = triton_probe.failure(device)
    if failure is not None:
        warnings.warn(
            f"Triton is installed and does not work on {device}, so the losses run there in plain PyTorch, which is "
            f"slower: {failure}. Triton needs a C compiler and Python's headers (gcc and python3-dev), and a device of "
            'compute capability 7.5 or more. With use_backend("reference") this is not tried.',
            stacklevel=2,
        )
    return failure


def _not_triton(unsupported: Reasons | None, tensor: Tensor, *others: Tensor) -> list[str]:
    if not _HAS_TRITON:
        return ["triton is not installed (pip install 'classbalance_losses[triton]')"]
    if reasons := _more_than_memory(tensor, *others):
        return reasons
    if tensor.is_cuda and not torch.compiler.is_compiling() and (failure := _triton_failure(tensor.device)):
        return [f"Triton does not work on {tensor.device} ({failure})"]
    if unsupported is not None:
        return unsupported()
    from classbalance_losses.kernels.triton_common import INTERPRETED  # noqa: PLC0415 - an optional dependency

    return [] if tensor.is_cuda or INTERPRETED else [f"the tensor is on {tensor.device.type}, not on CUDA"]
