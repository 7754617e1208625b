"""What a law raises where it does not hold, and the comparisons that raise it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_SHOWN = 8  # numbers of a tensor that a sentence can hold
_TOLERANCES = {torch.float64: (1e-8, 1e-10), torch.float32: (2e-5, 2e-6)}


class ViolationError(Exception):
    """A law does not hold: what it expects, and what came."""

    def __init__(self, expected: str, came: str) -> None:
        super().__init__(f"expected {expected}, came {came}")
        self.expected = expected
        self.came = came


@contextmanager
def blamed_on_the_loss(expected: str) -> Iterator[None]:
    """Turn whatever is raised inside into a violation: somebody else's loss may raise anything."""
    try:
        yield
    except ViolationError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        came = f"{type(error).__name__}: {text[:200]}{'…' if len(text) > 200 else ''}"
        raise ViolationError(expected, came) from error


def tolerance(dtype: torch.dtype) -> tuple[float, float]:
    """Relative and absolute rounding that two ways to one number may differ by, in the dtype of the loss."""
    eps = torch.finfo(dtype).eps
    return _TOLERANCES.get(dtype, (4 * eps, 4 * eps))


def expect_close(
    what: str, came: Tensor, expected: Tensor, dtype: torch.dtype | tuple[float, float] = torch.float64
) -> None:
    """Raise unless the two agree to the rounding of ``dtype``, or to the tolerances given in its place.

    Raises:
        ViolationError: with the numbers that differ most.
    """
    came, expected = came.detach(), expected.detach()
    if came.shape != expected.shape:
        raise ViolationError(f"{what} of shape {tuple(expected.shape)}", f"shape {tuple(came.shape)}")
    rtol, atol = dtype if isinstance(dtype, tuple) else tolerance(dtype)
    ours, theirs = came.double(), expected.double()
    if torch.allclose(ours, theirs, rtol=rtol, atol=atol):
        return
    gap = ours - theirs
    worst = torch.where(gap.isfinite(), gap.abs(), torch.inf).flatten().argmax()
    raise ViolationError(f"{what} {numbers(theirs, worst)}", numbers(ours, worst))


def expect_finite(what: str, came: Tensor) -> None:
    """Raise unless every number is finite.

    Raises:
        ViolationError: with the first number that is not.
    """
    flat = came.detach().flatten()
    if not flat.isfinite().all():
        raise ViolationError(f"{what} that is finite", numbers(came, (~flat.isfinite()).int().argmax()))


def numbers(tensor: Tensor, worst: Tensor) -> str:
    """A tensor's numbers where they are few, else the one that differs most, and its place."""
    flat = tensor.detach().double().flatten()
    if tensor.ndim == 0:
        return f"{float(tensor):.6g}"
    if len(flat) <= _SHOWN:
        return "[" + ", ".join(f"{float(x):.6g}" for x in flat) + "]"
    place = [int(i) for i in torch.unravel_index(worst, tensor.shape)]
    return f"{float(flat[worst]):.6g} at {place}"
