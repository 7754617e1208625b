"""Stage 2 on a CPU, block by block: focal's function of the cross-entropy, with its slope found on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_ELEMENTS = 1 << 16  # for each thread: half a dozen buffers of 256 KiB


def focal(loss: Tensor, gamma: float, reference: Callable[[Tensor], Tensor]) -> Tensor:
    r"""Return :math:`(1 - e^{-\ell})^\gamma \ell` for ℓ ≥ 0 and γ > 0; backward keeps the slope, and no intermediate.

    ``reference`` is the same function with a graph, for a backward of the backward.
    """
    value: Tensor = _Focal.apply(loss, gamma, reference)  # type: ignore[no-untyped-call]
    return value


class _Focal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, gamma: float, reference: Callable[[Tensor], Tensor]) -> Tensor:
        value, slope = torch.empty(loss.shape, dtype=loss.dtype), torch.empty(loss.shape, dtype=loss.dtype)
        flat, flat_value, flat_slope = loss.detach().reshape(-1), value.view(-1), slope.view(-1)
        step = _ELEMENTS * torch.get_num_threads()
        for start in range(0, flat.numel(), step):
            here = slice(start, start + step)
            _value_and_slope(flat[here], gamma, flat_value[here], flat_slope[here])
        ctx.save_for_backward(loss, slope)
        ctx.reference = reference
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        loss, slope = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return grad * slope, None, None
        return torch.autograd.grad(ctx.reference(loss), loss, grad, create_graph=True)[0], None, None


def _value_and_slope(loss: Tensor, gamma: float, value: Tensor, slope: Tensor) -> None:
    r"""With :math:`q = 1 - e^{-\ell}`: :math:`q^\gamma \ell` and :math:`q^{\gamma-1} (q + \gamma (1 - q) \ell)`."""
    missed = torch.expm1(-loss).neg_()
    # Where ℓ is 0 both are 0, though the power is infinite for γ < 1.
    power = torch.where(loss > 0, missed ** (gamma - 1), 0) if gamma < 1 else missed ** (gamma - 1)
    torch.mul(power * missed, loss, out=value)
    torch.addcmul(missed, 1 - missed, loss, value=gamma, out=slope).mul_(power)
