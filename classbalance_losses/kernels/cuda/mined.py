"""Class sums over H's pixels: the map of values is what H is chosen by, and no map of slopes is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from classbalance_losses.kernels import reference
from classbalance_losses.kernels.call import ClassSums, Hard, Labels, Logits
from classbalance_losses.kernels.cuda.classes import CLASS_SUMS
from classbalance_losses.kernels.cuda.pixel import FORWARD, at_full_size, classes
from classbalance_losses.kernels.cuda.weighted import WEIGHTED_BACKWARD
from classbalance_losses.kernels.forms.cuda import form_of, parameters
from classbalance_losses.kernels.forms.reference import Form
from classbalance_losses.kernels.operators import by_reference
from classbalance_losses.kernels.plain import needs_reference


def mined_sums(
    logits: Logits,
    labels: Labels,
    form: Form,
    weight: Tensor | None,
    choose: Callable[[Tensor], Hard],
    *,
    by_image: bool,
) -> tuple[ClassSums, Hard] | None:
    r"""Return what `class_sums` makes of φ over H, of the batch, and H; ``None`` by image, and of enlarged logits.

    Args:
        logits: Of any layout, with their gradient.
        labels: The pixels that count, and their classes.
        form: φ.
        weight: q (N, *), float32 and constant, or ``None`` for 1.
        choose: Finds H from the map of φ (N, *).
        by_image: Whether each image has an H of its own.
    """
    if by_image or logits.resize is not None:
        return None
    input, bias, single = at_full_size(logits)
    kind, numbers, form_weight = parameters(form)
    how = (labels.ignore_index, kind, numbers)
    value, norm_map = FORWARD(input.detach(), labels.target, form_weight, *how, False, bias, single)
    hard = choose(value)
    given = (norm_map, form_weight, weight, value, *hard, *how, bias, single)
    number, sums = _Mined.apply(input, labels.target, *given)  # type: ignore[no-untyped-call]
    return ClassSums(number, sums, None), hard


class _Mined(torch.autograd.Function):
    """Class sums of a map that is known, and their gradient of the logits that it was made of."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        norm_map: Tensor,
        form_weight: Tensor | None,
        weight: Tensor | None,
        value: Tensor,
        *given: Any,
    ) -> tuple[Tensor, Tensor]:
        *hard, ignore_index, kind, numbers, bias, single = given
        num_classes = classes(input.shape, single)
        number, sums = CLASS_SUMS(value, None, target, num_classes, ignore_index, 1, weight, *hard)
        ctx.mark_non_differentiable(number)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, target, norm_map, bias, form_weight, weight, *hard)
        ctx.how, ctx.single = (ignore_index, kind, numbers), single
        return number, sums

    @staticmethod
    def backward(ctx: Any, _: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 14
        input, target, norm_map, bias, form_weight, weight, *hard = ctx.saved_tensors
        if not needs_reference(grad):
            given = (norm_map, None, form_weight, grad.squeeze(0), weight, *hard, *ctx.how, bias, ctx.single)
            return WEIGHTED_BACKWARD(None, None, input, target, *given), *[None] * 13

        def outputs(input: Tensor) -> list[Tensor]:
            ignore_index, kind, numbers = ctx.how
            labels = Labels(target, classes(input.shape, ctx.single), ignore_index)
            logits = Logits(input, None, bias, ctx.single)
            values = reference.pixel_values(logits, labels, form_of(kind, numbers, form_weight))
            sums = reference.class_sums(labels, values, None, weight, hard=Hard(*hard)).value
            assert sums is not None
            return [sums]

        return by_reference(outputs, input, [grad]), *[None] * 13
