"""Cross-entropy of label vectors on a CPU: one pass over logits and labels forward, and one backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from classbalance_losses.kernels import reference
from classbalance_losses.kernels.call import Logits
from classbalance_losses.kernels.cpu import pixel_loops as loops
from classbalance_losses.kernels.cpu import strided, upsample
from classbalance_losses.kernels.cpu.threads import run
from classbalance_losses.kernels.operators import by_reference, define
from classbalance_losses.kernels.plain import needs_reference
from classbalance_losses.kernels.reference import class_rows


def soft_cross_entropy(logits: Logits, target: Tensor, weight: Tensor | None) -> Tensor:
    r"""Return :math:`\sum_c w_c t_{ic} (-\log p_{ic})` (N, *) of label vectors t (N, C, *), constant, without NaN.

    Logits of another size are resized first. Labels of half precision are made float32.
    """
    input, others = upsample.resized(logits), (logits.bias, logits.single)
    value, _ = _SoftPass.apply(input, target.detach().float(), weight, *others)  # type: ignore[no-untyped-call]
    return value  # type: ignore[no-any-return]


class _SoftPass(torch.autograd.Function):
    """The value, and log Σ; its backward by the loops, or by the reference."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        value, log_sum = _FORWARD(input, *others)
        target, weight, bias, ctx.single = others
        ctx.save_for_backward(input, target, log_sum, weight, bias)
        ctx.mark_non_differentiable(log_sum)
        return value, log_sum

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        input, target, log_sum, weight, bias = ctx.saved_tensors
        if needs_reference(grad):

            def values(input: Tensor) -> tuple[Tensor]:
                return (reference.soft_cross_entropy(Logits(input, None, bias, ctx.single), target, weight),)

            gradient = by_reference(values, input, (grad,))
        else:
            gradient = _BACKWARD(grad, input, target, log_sum, weight, bias, ctx.single)
        return (gradient, *(None,) * 4)


def _forward(
    input: Tensor, target: Tensor, weight: Tensor | None, bias: Tensor | None, single: bool
) -> tuple[Tensor, Tensor]:
    value, log_sum = _maps(input, target)
    _kept, job = _prepared(input, target, weight, bias, single, value=value, log_sum=log_sum)
    run(loops.go, job)
    return value, log_sum


def _maps(input: Tensor, target: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    shape = target.shape[:1] + target.shape[2:]
    value = torch.empty(shape, dtype=torch.float32, device=input.device)
    return value, torch.empty_like(value) if _is_kept(input, target) else value.new_empty(0)


def _is_kept(input: Tensor, target: Tensor) -> bool:
    return strided.keeps_log_sum(input, target.shape[1])


def _backward(
    grad: Tensor,
    input: Tensor,
    target: Tensor,
    log_sum: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    single: bool,
) -> Tensor:
    gradient, slope = strided.like(input), grad.contiguous()
    _kept, job = _prepared(input, target, weight, bias, single, slope=slope, log_sum=log_sum)
    strided.hand_over_rows(job, "gradient", class_rows(gradient), input.dtype)
    run(loops.go, job)
    return gradient


def _gradient(grad: Tensor, input: Tensor, *_: object) -> Tensor:
    return strided.like(input)


def _prepared(
    input: Tensor, target: Tensor, weight: Tensor | None, bias: Tensor | None, single: bool, **maps: Tensor
) -> tuple[list[Tensor], Any]:
    """Return tensors that the caller keeps alive, and the job, which has their addresses."""
    if not _is_kept(input, target):
        del maps["log_sum"]
    constants = {"class_weight": weight, "bias": bias}
    maps |= {name: values.contiguous() for name, values in constants.items() if values is not None}
    x, shares = class_rows(input), class_rows(target)
    job = strided.job_for(x, None, 0, single, **maps)
    strided.hand_over_rows(job, "soft", shares, torch.float32)
    return [x, shares, *maps.values()], job


_FORWARD = define(
    "cpu_soft_forward(Tensor input, Tensor target, Tensor? weight, Tensor? bias, bool single) -> (Tensor, Tensor)",
    _forward,
    _maps,
)
_BACKWARD = define(
    "cpu_soft_backward(Tensor grad, Tensor input, Tensor target, Tensor log_sum, Tensor? weight, Tensor? bias, "
    "bool single) -> Tensor",
    _backward,
    _gradient,
)
