r"""Sums of probabilities of each image and class, with a form of each pixel or without: one pass each way.

- Forward is the pixel pass, of programs of one warp each, which do not cross images. In a second round over their
  logits, in the cache by then, they add probabilities up over their pixels, class by class, and write these parts; a
  second kernel adds the parts up, in one order.
- Backward takes the gradients of both tables and of φ, finds :math:`\sum_k p_k \, \partial P_k` of each pixel in one
  round and writes the gradient in a second. Kept are the maps that the pixel pass keeps, no probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from classbalance_losses.kernels import reference
from classbalance_losses.kernels.call import Labels, Logits, Overlap, Pass
from classbalance_losses.kernels.cuda import overlap_kernels, pixel_kernels
from classbalance_losses.kernels.cuda.common import Launch, Layout, all_fit, check_fit, define, image_layout
from classbalance_losses.kernels.cuda.pixel import (
    BACKWARD,
    THREADS,
    UNROLLED,
    at_full_size,
    classes,
    pixel_pass,
)
from classbalance_losses.kernels.forms.cuda import OF_LOSS, for_kernel, form_of, parameters
from classbalance_losses.kernels.forms.reference import CrossEntropy, Form
from classbalance_losses.kernels.operators import by_reference
from classbalance_losses.kernels.plain import needs_reference

# Pixels of a warp, whose rows are neighbours or not: eight a thread, or four where each needs an address of its own, so
# that a sum takes about as many exchanges as additions, and registers suffice.
_PIXELS = {4: 256, 1: 128}
_PARTS = 1024  # that are added up at once
_UNROLLED = 16  # classes of one round of backward


def values_and_overlap(
    logits: Logits, labels: Labels, form: Form | None, weight: Tensor | None, *, with_error: bool = False
) -> Pass:
    """Return P and I of each image and class (N, C), weighted by q, and φ and the error if they are asked for."""
    input, bias, single = at_full_size(logits)
    kind, numbers, of_form = parameters(CrossEntropy() if form is None or with_error else form)
    of_loss = (form is not None and kind in OF_LOSS) or with_error
    found: tuple[Tensor, ...] = _OverlapPass.apply(  # type: ignore[no-untyped-call]
        *(input, labels.target, weight, labels.ignore_index),
        *(kind if of_loss else "", numbers if of_loss else [], with_error, bias, single),
    )
    probability, own, *maps = found
    if form is not None and not of_loss:  # it goes over all logits in two rounds of its own
        maps = [*pixel_pass(Logits(input, None, bias, single), labels, kind, numbers, of_form)]
    value, error, *_ = (*maps, None, None)
    return Pass(Overlap(probability, own), value, error)


class _OverlapPass(torch.autograd.Function):
    """P and I of each image and class, φ if there is a kind of form, and the error if asked."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        q: Tensor | None,
        ignore_index: int,
        kind: str,
        numbers: list[float],
        with_error: bool,
        bias: Tensor | None,
        single: bool,
    ) -> tuple[Tensor, ...]:
        probability, own, norm, *maps = _FORWARD(
            input, target, q, ignore_index, kind, numbers, with_error, bias, single
        )
        ctx.mark_non_differentiable(*maps[1:])
        ctx.set_materialize_grads(False)  # they would be zeros as large as the maps
        ctx.save_for_backward(input, target, q, norm, bias)
        ctx.how = ignore_index, kind, numbers, single
        return probability, own, *maps

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 8
        probability, own, value = (*grads, None)[:3]
        given = [grad for grad in (probability, own, value) if grad is not None]
        if not given:
            return None, *nothing
        input, target, q, norm, bias = ctx.saved_tensors
        ignore_index, kind, numbers, single = ctx.how
        if any(needs_reference(grad) for grad in given):

            def outputs(input: Tensor) -> list[Tensor]:
                labels = Labels(target, classes(input.shape, single), ignore_index)
                form = form_of(kind, numbers, None) if kind else None
                found = reference.values_and_overlap(Logits(input, None, bias, single), labels, form, q)
                return [*found.overlap, *([] if found.value is None else [found.value])]

            return by_reference(outputs, input, grads[: 3 if kind else 2]), *nothing
        how = ignore_index, kind, numbers, bias, single
        if value is not None and len(given) == 1:
            return BACKWARD(value, input, target, None, norm, *how), *nothing
        return _BACKWARD(probability, own, value, input, target, q, norm, *how), *nothing


def _forward(
    input: Tensor,
    target: Tensor,
    q: Tensor | None,
    ignore_index: int,
    kind: str,
    numbers: Sequence[float],
    with_error: bool,
    bias: Tensor | None = None,
    single: bool = False,
) -> list[Tensor]:
    how = q, ignore_index, kind, numbers, with_error, bias, single
    plan = _forward_launches(ignore_index, kind, (*numbers,), single, input.shape, input.stride())
    if plan is None:
        return _forward(input.contiguous(), target, *how)
    parts, add, join = plan
    probability, own, norm, *maps = outputs = _outputs(input, target, *how)
    value, error, *_ = (*maps, None, None)
    partial = input.new_empty((2, *probability.shape, parts), dtype=torch.float32)
    fits = all_fit(input.device)
    q = None if q is None else q.contiguous()
    add(input, target.contiguous(), bias, None, q, value, error, norm, partial, fits)
    check_fit(fits, classes(input.shape, single))
    join(partial, probability, own)
    return outputs


def _outputs(
    input: Tensor,
    target: Tensor,
    q: Tensor | None,
    ignore_index: int,
    kind: str,
    numbers: Sequence[float],
    with_error: bool,
    bias: Tensor | None = None,
    single: bool = False,
) -> list[Tensor]:
    def new(*shape: int) -> Tensor:
        return input.new_empty(shape, dtype=torch.float32)

    table = input.shape[0], classes(input.shape, single)
    planes = 3 if kind == "focal" else 2
    maps = [new(*target.shape) for asked in (kind, with_error) if asked]
    return [new(*table), new(*table), new(planes, *target.shape), *maps]


def _backward(
    probability: Tensor | None,
    own: Tensor | None,
    value: Tensor | None,
    input: Tensor,
    target: Tensor,
    q: Tensor | None,
    norm: Tensor,
    ignore_index: int,
    kind: str,
    numbers: Sequence[float],
    bias: Tensor | None = None,
    single: bool = False,
) -> Tensor:
    output = torch.empty_like(input)
    # Of sums over all images the gradient is one row, expanded.
    tables = [grad for grad in (probability, own) if grad is not None]
    is_shared = all(grad.stride(0) == 0 for grad in tables)
    if is_shared:
        probability, own = (None if grad is None else grad[:1] for grad in (probability, own))
    layouts = input.shape, input.stride(), output.stride()
    launch = _backward_launch(ignore_index, kind, single, is_shared, *layouts)
    if launch is None:
        how = target, q, norm, ignore_index, kind, numbers, bias, single
        return output.copy_(_backward(probability, own, value, input.contiguous(), *how))
    grads = [None if grad is None else grad.contiguous() for grad in (probability, own, value)]
    q = None if q is None else q.contiguous()
    launch(output, input, target.contiguous(), bias, q, norm, *grads)
    return output


@lru_cache(maxsize=1 << 10)
def _forward_launches(
    ignore_index: int,
    kind: str,
    numbers: Sequence[float],
    single: bool,
    shape: Sequence[int],
    stride: Sequence[int],
) -> tuple[int, Launch, Launch] | None:
    """Return how many parts an image has, what writes them, and what adds them up; for a layout that there is."""
    layout = image_layout(shape, stride)
    if layout is None:
        return None
    num_classes = classes(shape, single)
    together = 4 if layout.strides[0][-1] == 1 else 1
    pixels = _PIXELS[together]
    parts, cells = triton.cdiv(layout.inner, pixels), shape[0] * num_classes
    kind, numbers = for_kernel(kind or "cross entropy", numbers, num_classes)
    add = Launch(
        pixel_kernels.forward,
        layout.outer * parts,
        (*_places(layout, parts, ignore_index), *numbers, stride[1], *layout.strides[0]),
        (layout.row < layout.inner, kind, False, int(single), num_classes, UNROLLED, together, pixels),
        num_warps=1,
    )
    return parts, add, Launch(overlap_kernels.join_overlap, cells, (parts, cells * parts), (_PARTS,))


@lru_cache(maxsize=1 << 10)
def _backward_launch(
    ignore_index: int,
    kind: str,
    single: bool,
    is_shared: bool,
    shape: Sequence[int],
    *strides: Sequence[int],
) -> Launch | None:
    layout = image_layout(shape, *strides)
    if layout is None:
        return None
    table_step = 0 if is_shared else classes(shape, single)
    block = THREADS * (4 if layout.strides[0][-1] == 1 else 1)
    blocks = triton.cdiv(layout.inner, block)
    steps = (step for of, places in zip(strides, layout.strides, strict=True) for step in (of[1], *places))
    return Launch(
        overlap_kernels.overlap_backward,
        layout.outer * blocks,
        (*_places(layout, blocks, ignore_index), table_step, *steps),
        (layout.row < layout.inner, kind == "focal", int(single), classes(shape, single), _UNROLLED, block),
    )


def _places(layout: Layout, blocks: int, ignore_index: int) -> tuple[int, ...]:
    return layout.outer, layout.inner, blocks, ignore_index, layout.row


_FORM = "int ignore_index, str kind, float[] numbers"
_READ = "Tensor? bias=None, bool single=False"
_FORWARD = define(
    "cuda_overlap_forward(Tensor input, Tensor target, Tensor? q, "
    f"{_FORM}, bool with_error, {_READ}) -> Tensor[]",
    _forward,
    _outputs,
)
_BACKWARD = define(
    "cuda_overlap_backward(Tensor? probability, Tensor? own, Tensor? value, Tensor input, Tensor target, "
    f"Tensor? q, Tensor norm, {_FORM}, {_READ}) -> Tensor",
    _backward,
    lambda probability, own, value, logits, *_: torch.empty_like(logits),
)
