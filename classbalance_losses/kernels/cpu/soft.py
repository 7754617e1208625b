"""The pass over logits and label vectors on a CPU: values or sums of classes forward, the gradient backward.

Both read logits and labels once, and forward keeps what `pixel` keeps. To take H's pixels alone, forward goes over them
twice: by the first values H is chosen, and the second sums it up, with the log Σ of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classbalance_losses.kernels import reference
from classbalance_losses.kernels.call import ClassSums, Hard, Labels, Logits
from classbalance_losses.kernels.cpu import pixel_loops as loops
from classbalance_losses.kernels.cpu import soft_tiles, strided, tiles, upsample
from classbalance_losses.kernels.cpu.maps import shares_of
from classbalance_losses.kernels.cpu.memory import hand_over
from classbalance_losses.kernels.cpu.pixel import PARTS
from classbalance_losses.kernels.cpu.threads import run
from classbalance_losses.kernels.factors import class_rows, scaled
from classbalance_losses.kernels.forms.cpu import CROSS_ENTROPY, fill, form_of, parameters
from classbalance_losses.kernels.forms.reference import Form, of_all_classes
from classbalance_losses.kernels.operators import by_reference, define
from classbalance_losses.kernels.plain import needs_reference

_FIELDS = {**tiles.FIELDS, **soft_tiles.FIELDS}
_OF_LOSS: tuple[int, list[float]] = (CROSS_ENTROPY, [])


def soft_cross_entropy(logits: Logits, target: Tensor, weight: Tensor | None) -> Tensor:
    r"""Return :math:`\sum_c w_c t_{ic} (-\log p_{ic})` (N, *) of label vectors t (N, C, *), constant, without NaN.

    Logits of another size are resized first. Labels of half precision are made float32.
    """
    input, others = upsample.resized(logits), (logits.bias, logits.single)
    value, _ = _SoftPass.apply(input, target.detach().float(), weight, *others)  # type: ignore[no-untyped-call]
    return value  # type: ignore[no-any-return]


def soft_sums(
    logits: Logits,
    labels: Labels,
    target: Tensor,
    form: Form,
    weight: Tensor | None,
    *,
    with_error: bool = False,
    choose: Callable[[Tensor], Hard] | None = None,
) -> tuple[ClassSums, Hard | None]:
    """Return sums of each row and class of label vectors, as the reference does, of cross-entropy or focal.

    Labels of single pixels (N, C) are one row.
    """
    input, target = upsample.resized(logits), target.detach().float()
    code, numbers, _ = parameters(form)
    others = (logits.bias, logits.single, code, numbers)
    hard, share, log_sum = None, None, None
    if choose is not None:
        value, log_sum = _FORWARD(input.detach(), target, None, *others)
        hard = choose(value)
        share, log_sum = shares_of(labels, hard), _if_kept(log_sum)
    sums = _SoftSums.apply(input, target, weight, share, log_sum, with_error, *others)  # type: ignore[no-untyped-call]
    number, values, squared = sums
    return ClassSums(number, values, squared if with_error else None), hard


class _SoftPass(torch.autograd.Function):
    """The value, and log Σ; its backward by the loops, or by the reference."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        value, log_sum = _FORWARD(input, *others, *_OF_LOSS)
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
            others = (bias, ctx.single, *_OF_LOSS)
            gradient = _BACKWARD(input, target, log_sum, grad, weight, None, None, None, *others)
        return (gradient, *(None,) * 4)


class _SoftSums(torch.autograd.Function):
    """Sums of classes, of which those of φ have a gradient; its backward by the loops, or by the reference."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        share: Tensor | None,
        log_sum: Tensor | None,
        with_error: bool,
        bias: Tensor | None,
        *constants: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        given = (input, target, weight, share, log_sum, with_error, bias, *constants)
        number, value, squared, made = _SUMS(*given)
        ctx.save_for_backward(input, target, weight, share, made if log_sum is None else log_sum, bias)
        ctx.constants = constants
        ctx.mark_non_differentiable(number, squared)
        return number, value, squared

    @staticmethod
    def backward(ctx: Any, _: Any, grad: Tensor, __: Any) -> tuple[Tensor | None, ...]:
        input, target, weight, share, log_sum, bias = ctx.saved_tensors
        if needs_reference(grad):
            single, code, numbers = ctx.constants

            def sums(input: Tensor) -> tuple[Tensor]:
                logits = Logits(input, None, bias, single).full_size()
                values = of_all_classes(form_of(code, numbers, None), logits, (target != 0).any(1))
                factors = (None if of is None else of.unsqueeze(1) for of in (weight, share))
                return (class_rows(scaled(values, target, *factors)).sum(2),)

            gradient = by_reference(sums, input, (grad,))
        else:
            given = (None, None, share, weight, grad, bias, *ctx.constants)
            gradient = _BACKWARD(input, target, log_sum, *given)
        return (gradient, *(None,) * 9)


def _forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    single: bool,
    code: int,
    numbers: Sequence[float],
) -> tuple[Tensor, Tensor]:
    value, log_sum = _maps(input, target)
    maps = {"value": value, "log_sum": _if_kept(log_sum), "class_weight": weight, "bias": bias}
    _kept, job = _prepared(input, target, single, code, numbers, maps)
    strided.share_out(job)
    run(loops.go, job)
    return value, log_sum


def _maps(input: Tensor, target: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    shape = target.shape[:1] + target.shape[2:]
    value = torch.empty(shape, dtype=torch.float32, device=input.device)
    is_kept = strided.keeps_log_sum(input, target.shape[1])
    return value, torch.empty_like(value) if is_kept else value.new_empty(0)


def _if_kept(log_sum: Tensor) -> Tensor | None:
    return log_sum if log_sum.numel() else None


def _sums(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    share: Tensor | None,
    log_sum: Tensor | None,
    with_error: bool,
    bias: Tensor | None,
    single: bool,
    code: int,
    numbers: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *sums, made = _outputs(input, target, weight, share, log_sum)
    kept = _if_kept(made) if log_sum is None else log_sum
    maps = {"pixel_weight": weight, "hard_share": share, "log_sum": kept, "bias": bias}
    _kept, job = _prepared(input, target, single, code, numbers, maps)
    job["has_log_sum"], job["with_error"] = log_sum is not None, with_error
    # Parts of an image, in the order of whose sums no thread has a say.
    images, classes = int(job["images"][0]), target.shape[1]
    parts = min(int(job["parts"][0]) // max(images, 1), PARTS)
    job["parts"] = images * parts
    table = np.zeros((images, parts, classes, soft_tiles.COLUMNS))
    hand_over(job, _FIELDS, {"soft_sums": torch.from_numpy(table)})
    run(loops.go, job)
    with np.errstate(invalid="ignore"):  # inf - inf
        found = torch.from_numpy(table.sum(1)).float().unbind(-1)
    for into, of in zip(sums, found, strict=True):
        into.copy_(of)
    return sums[0], sums[1], sums[2], made


def _outputs(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    share: Tensor | None,
    log_sum: Tensor | None,
    *_: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = target.shape[0] if target.ndim > 2 else 1
    number, value, squared = (
        torch.empty(rows, target.shape[1], dtype=torch.float32, device=input.device) for _ in range(3)
    )
    made = _maps(input, target)[1] if log_sum is None else number.new_empty(0)
    return number, value, squared, made


def _backward(
    input: Tensor,
    target: Tensor,
    log_sum: Tensor,
    slope: Tensor | None,
    class_weight: Tensor | None,
    share: Tensor | None,
    pixel_weight: Tensor | None,
    soft_slope: Tensor | None,
    bias: Tensor | None,
    single: bool,
    code: int,
    numbers: Sequence[float],
) -> Tensor:
    gradient = strided.like(input)
    maps = {"slope": slope, "class_weight": class_weight, "hard_share": share, "pixel_weight": pixel_weight}
    maps |= {"soft_slope": soft_slope, "log_sum": _if_kept(log_sum), "bias": bias}
    _kept, job = _prepared(input, target, single, code, numbers, maps)
    strided.hand_over_rows(job, "gradient", class_rows(gradient), input.dtype)
    strided.share_out(job)
    run(loops.go, job)
    return gradient


def _gradient(input: Tensor, *_: object) -> Tensor:
    return strided.like(input)


def _prepared(
    input: Tensor,
    target: Tensor,
    single: bool,
    code: int,
    numbers: Sequence[float],
    maps: Mapping[str, Tensor | None],
) -> tuple[list[Tensor], Any]:
    """Return tensors that the caller keeps alive, and the job, which has their addresses."""
    given = {name: values.contiguous() for name, values in maps.items() if values is not None}
    x, shares = class_rows(input), class_rows(target)
    job = strided.job_for(x, None, 0, single)
    hand_over(job, _FIELDS, given)
    strided.hand_over_rows(job, "soft", shares, torch.float32)
    fill(job["form"], code, numbers, None, target.shape[1])
    return [x, shares, *given.values()], job


_FORM = "Tensor? bias, bool single, int form, float[] numbers"
_FORWARD = define(
    f"cpu_soft_forward(Tensor input, Tensor target, Tensor? weight, {_FORM}) -> (Tensor, Tensor)",
    _forward,
    _maps,
)
_SUMS = define(
    "cpu_soft_sums(Tensor input, Tensor target, Tensor? weight, Tensor? share, Tensor? log_sum, bool with_error, "
    f"{_FORM}) -> (Tensor, Tensor, Tensor, Tensor)",
    _sums,
    _outputs,
)
_BACKWARD = define(
    "cpu_soft_backward(Tensor input, Tensor target, Tensor log_sum, Tensor? slope, Tensor? class_weight, "
    f"Tensor? share, Tensor? pixel_weight, Tensor? soft_slope, {_FORM}) -> Tensor",
    _backward,
    _gradient,
)
