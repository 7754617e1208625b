"""Stage 2 on a CPU, block by block: focal's function of the cross-entropy, and its slope."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from classbalance_losses.kernels.blocked_pixel import by_reference, needs_reference

HOPELESS = 104.0  # a cross-entropy whose probability is 0 in float32, and far below rounding in float64

_ELEMENTS = 1 << 16  # for each thread: half a dozen buffers of 256 KiB


def focal(loss: Tensor, gamma: float, reference: Callable[[Tensor], Tensor]) -> Tensor:
    r"""Return :math:`(1 - e^{-\ell})^\gamma \ell` for ℓ ≥ 0 and γ > 0; ℓ is all that backward keeps.

    ``reference`` is the same function with a graph, for a backward of the backward.
    """
    value: Tensor = _Focal.apply(loss, gamma, reference)  # type: ignore[no-untyped-call]
    return value


class _Focal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, gamma: float, reference: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(loss)
        ctx.gamma, ctx.reference = gamma, reference
        value = torch.empty_like(loss, memory_format=torch.contiguous_format)
        for part, place in _blocks(loss.detach(), value):
            missed, power = _missed_and_power(part, gamma)
            torch.mul(power.mul_(missed), part, out=place)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (loss,) = ctx.saved_tensors
        if needs_reference(grad):
            return by_reference(ctx.reference, loss, grad), None, None
        gradient = torch.empty_like(loss, memory_format=torch.contiguous_format)
        for part, given, place in _blocks(loss, grad, gradient):
            missed, power = _missed_and_power(part, ctx.gamma)
            bounded = part.clamp(max=HOPELESS)  # 0 · inf would be NaN
            slope = torch.addcmul(missed, 1 - missed, bounded, value=ctx.gamma).mul_(power)
            torch.mul(slope, given, out=place)
        return gradient, None, None


def _blocks(*values: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Go over tensors of one shape together; the last is contiguous, and written to."""
    step = _ELEMENTS * torch.get_num_threads()
    yield from zip(*(torch.split(tensor.reshape(-1), step) for tensor in values), strict=True)


def _missed_and_power(loss: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    r"""Return :math:`q = 1 - e^{-\ell}` and :math:`q^{\gamma-1}`.

    The value is :math:`q^\gamma \ell`, its slope :math:`q^{\gamma-1} (q + \gamma (1 - q) \ell)`.
    """
    missed = torch.expm1(-loss).neg_()
    # Where ℓ is 0 both are 0, though the power is infinite for γ < 1.
    power = torch.where(loss > 0, missed ** (gamma - 1), 0) if gamma < 1 else missed ** (gamma - 1)
    return missed, power
