r"""Weighted sums of a form by the pixel pass itself: no map of values is written, and none of their slopes.

Programs of forward write a part each of :math:`\sum_i w_{y_i} q_i \varphi_i` and :math:`\sum_i w'_{y_i}`, and a kernel
adds the parts up and divides. Backward makes each pixel's gradient of the scalars' on its way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from classbalance_losses.kernels import reference
from classbalance_losses.kernels.call import Labels, Logits, WeightedSums
from classbalance_losses.kernels.cuda.classes import ALL, HARD, join_of, new_sums, read
from classbalance_losses.kernels.cuda.common import all_fit, check_fit, define
from classbalance_losses.kernels.cuda.pixel import classes, plan_for
from classbalance_losses.kernels.forms.cuda import form_of, parameters
from classbalance_losses.kernels.forms.reference import Form
from classbalance_losses.kernels.operators import by_reference
from classbalance_losses.kernels.plain import needs_reference


def weighted_pass(
    logits: Logits,
    labels: Labels,
    form: Form,
    weight: Tensor | None,
    norm_weight: Tensor | None,
    pixel_weight: Tensor | None,
) -> WeightedSums | None:
    """Return what `weighted_sums` makes of φ; ``None`` for logits that are enlarged on the way."""
    if logits.resize is not None:
        return None
    kind, numbers, form_weight = parameters(form)
    over_weight = norm_weight is not None and norm_weight is weight  # a graph takes no tensor twice
    weights = (form_weight, weight, None if over_weight else norm_weight, pixel_weight)
    how = (labels.ignore_index, kind, numbers, logits.bias, logits.single, over_weight)
    sums = _WeightedPass.apply(logits.input, labels.target, *how, *weights)  # type: ignore[no-untyped-call]
    return WeightedSums(*sums)


class _WeightedPass(torch.autograd.Function):
    """The mean, the sum and the norm, the last of which has no gradient."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor, *given: Any) -> tuple[Tensor, ...]:
        sums, norm_map = _FORWARD(input, target, *given)
        *ctx.how, bias, single, over_weight, form_weight, weight, norm_weight, q = given
        ctx.single, ctx.over_weight = single, over_weight
        mean, total, norm = sums.unbind()
        ctx.mark_non_differentiable(norm)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, target, norm_map, norm, bias, form_weight, weight, norm_weight, q)
        return mean, total, norm

    @staticmethod
    def backward(
        ctx: Any, of_mean: Tensor | None, of_total: Tensor | None, _: Any
    ) -> tuple[Tensor | None, ...]:
        input, target, norm_map, norm, bias, form_weight, weight, norm_weight, q = ctx.saved_tensors
        ignore_index, kind, numbers = ctx.how
        grads = (of_mean, of_total)
        if not any(grad is not None and needs_reference(grad) for grad in grads):
            given = (norm_map, norm, form_weight, weight, q, *ALL, *ctx.how, bias, ctx.single)
            return WEIGHTED_BACKWARD(*grads, input, target, *given), *[None] * 11

        def sums(input: Tensor) -> tuple[Tensor, ...]:
            logits = Logits(input, None, bias, ctx.single)
            labels = Labels(target, classes(input.shape, ctx.single), ignore_index)
            values = reference.pixel_values(logits, labels, form_of(kind, numbers, form_weight))
            over = weight if ctx.over_weight else norm_weight
            return reference.weighted_sums(values, labels, weight, over, q)[:2]

        return by_reference(sums, input, grads), *[None] * 11


def _forward(
    input: Tensor,
    target: Tensor,
    ignore_index: int,
    kind: str,
    numbers: Sequence[float],
    bias: Tensor | None,
    single: bool,
    over_weight: bool,
    form_weight: Tensor | None,
    *weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    plan = plan_for(ignore_index, kind, (*numbers,), single, input.shape, input.stride(), has_sums=True)
    if plan is None:
        how = ignore_index, kind, numbers, bias, single, over_weight, form_weight
        return _forward(input.contiguous(), target, *how, *weights)
    sums, norm_map = _outputs(input, target, ignore_index, kind)
    weight, norm_weight, q = read(*weights)
    partial = input.new_empty((plan.programs, 2), dtype=torch.float32)
    fits = all_fit(input.device)
    asked = (None, None, None, norm_map, None)
    own = (weight, weight if over_weight else norm_weight, partial)
    plan(input, target.contiguous(), bias, form_weight, q, *asked, fits, *own)
    check_fit(fits, classes(input.shape, single))
    join_of(plan.programs)(partial, sums)
    return sums, norm_map


def _outputs(
    input: Tensor, target: Tensor, ignore_index: int, kind: str, *_: object
) -> tuple[Tensor, Tensor]:
    planes = 3 if kind == "focal" else 2
    return new_sums(input), input.new_empty((planes, *target.shape), dtype=torch.float32)


def _backward(
    of_mean: Tensor | None,
    of_total: Tensor | None,
    input: Tensor,
    target: Tensor,
    norm_map: Tensor,
    norm: Tensor | None,
    form_weight: Tensor | None,
    *given: Any,
) -> Tensor:
    """Return the gradient of the logits; ``given`` are w, q and H, and the form as forward has it."""
    *factors, ignore_index, kind, numbers, bias, single = given
    output = torch.empty_like(input)
    plan = plan_for(ignore_index, kind, (*numbers,), single, input.shape, input.stride(), output.stride())
    if plan is None:
        kept = norm_map, norm, form_weight
        return output.copy_(_backward(of_mean, of_total, input.contiguous(), target, *kept, *given))
    slopes = (None, of_mean, of_total, norm, *read(*factors))
    plan(input, target.contiguous(), bias, form_weight, norm_map, output, *slopes)
    return output


_FORM = "int ignore_index, str kind, float[] numbers, Tensor? bias, bool single"
_FORWARD = define(
    f"cuda_weighted_forward(Tensor input, Tensor target, {_FORM}, bool over_weight, Tensor? form_weight, "
    "Tensor? weight, Tensor? norm_weight, Tensor? pixel_weight) -> (Tensor, Tensor)",
    _forward,
    _outputs,
)
WEIGHTED_BACKWARD = define(
    "cuda_weighted_backward(Tensor? of_mean, Tensor? of_total, Tensor input, Tensor target, Tensor norm_map, "
    f"Tensor? norm, Tensor? form_weight, Tensor? weight, Tensor? pixel_weight, {HARD}, {_FORM}) -> Tensor",
    _backward,
    lambda of_mean, of_total, logits, *_: torch.empty_like(logits),
)
