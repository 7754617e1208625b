"""Class sums over H's pixels: the map of values is what H is chosen by, and no map of slopes is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd import Function

from classbalance_losses.kernels import reference
from classbalance_losses.kernels.call import ClassSums, Hard, Labels, Logits
from classbalance_losses.kernels.cpu import upsample
from classbalance_losses.kernels.cpu.maps import class_sums
from classbalance_losses.kernels.cpu.pixel import BACKWARD, FORWARD, as_called
from classbalance_losses.kernels.forms.cpu import form_of, parameters
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
    r"""Return what `class_sums` makes of φ over H, of all rows together (1, C), and H; ``None`` of images of one pixel.

    Args:
        logits: Of any layout, with their gradient.
        labels: The pixels that count, and their classes.
        form: φ.
        weight: q (N, *), float32 and constant, or ``None`` for 1.
        choose: Finds H from the map of φ (N, *).
        by_image: Whether each image has an H of its own.
    """
    if by_image and logits.input.ndim == 2:
        return None
    input, align_corners = upsample.taken(logits)
    code, numbers, class_weight = parameters(form)
    constants = (labels.ignore_index, align_corners, code, numbers, class_weight, False)
    others = (logits.bias, logits.single)
    value, _, log_sum, _ = FORWARD(input.detach(), labels.target, *constants, *others)
    hard = choose(value)
    sums = class_sums(labels, value, None, weight, rows=hard.bits.shape[0], hard=hard)
    number, found = sums.number.sum(0, keepdim=True), sums.value.sum(0, keepdim=True)  # type: ignore[union-attr]
    given = (input, labels.target, log_sum, found, weight, *hard, *constants[:-1], *others)
    return ClassSums(number, known_sums(*given), None), hard


def known_sums(*given: Any) -> Tensor:
    """Return sums that are known, with the gradient that `_Mined` has of them."""
    return _Mined.apply(*given)  # type: ignore[no-any-return, no-untyped-call]


class _Mined(Function):
    """Sums that are known, with their gradient of the logits; its backward by the loops, or by the reference.

    H is given by a map that is ranked, or ``None`` where its values are made again, the threshold, and h there.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        log_sum: Tensor,
        sums: Tensor,
        weight: Tensor | None,
        *given: Any,
    ) -> Tensor:
        *hard, ignore_index, align_corners, code, numbers, class_weight, bias, single = given
        ctx.save_for_backward(input, target, class_weight, log_sum, bias, weight, *hard)
        ctx.constants, ctx.single = (ignore_index, align_corners, code, numbers), single
        return sums.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, target, class_weight, log_sum, bias, weight, *hard = ctx.saved_tensors
        if needs_reference(grad):
            gradient = _by_reference(ctx, grad)
        else:
            others = (class_weight, bias, ctx.single, weight, None, grad.squeeze(0))
            gradient = BACKWARD(None, input, target, log_sum, *ctx.constants, *others, *hard)
        return (gradient, *(None,) * 14)


def _by_reference(ctx: Any, grad: Tensor) -> Tensor:
    input, target, class_weight, _, bias, weight, ranked, *threshold = ctx.saved_tensors
    code, numbers = ctx.constants[2:]
    if ranked is None:
        made = FORWARD(input.detach(), target, *ctx.constants, class_weight, False, bias, ctx.single)
        ranked = made[0]
    hard = Hard(ranked, *threshold)

    def outputs(input: Tensor) -> list[Tensor]:
        logits, labels = as_called(ctx, input)
        values = reference.pixel_values(logits, labels, form_of(code, numbers, class_weight))
        sums = reference.class_sums(labels, values, None, weight, rows=hard.bits.shape[0], hard=hard)
        assert sums.value is not None
        return [sums.value.sum(0, keepdim=True)]

    return by_reference(outputs, input, [grad])
