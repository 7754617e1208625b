r"""Sums of probabilities of each image and class, with a form of each pixel or without: one pass each way.

- Forward is the pixel pass, of programs of one warp each, which do not cross images. In a second round over their
  logits, in the cache by then, they add probabilities up over their pixels, class by class, and write these parts; a
  second kernel adds the parts up, in one order.
- Beside ℓ, or alone, there may be a form of all probabilities, in rounds of its own over the same logits.
- Backward takes the gradients of both tables and of φ, finds :math:`\sum_k p_k \, \partial P_k` of each pixel in one
  round and writes the gradient in a second. Kept are the maps that the pixel pass keeps, no probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import compress
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
    NO_SUMS,
    THREADS,
    UNROLLED,
    at_full_size,
    classes,
)
from classbalance_losses.kernels.forms.cuda import OF_LOSS, for_kernel, form_of, parameters
from classbalance_losses.kernels.forms.reference import CrossEntropy, Form
from classbalance_losses.kernels.operators import by_reference
from classbalance_losses.kernels.plain import needs_reference

# Pixels of a warp, whose rows are neighbours or not: eight a thread, or four where each needs an address of its own, so
# that a sum takes about as many exchanges as additions, and registers suffice.
_PIXELS = {4: 256, 1: 128}
_PIXELS_OF_ALL = 128  # with the sums of a form of all probabilities
_NO_FORM: tuple[str, list[float], None] = ("", [], None)
_PARTS = 1024  # that are added up at once
_UNROLLED = 16  # classes of one round of backward


def values_and_overlap(
    logits: Logits,
    labels: Labels,
    form: Form | None,
    weight: Tensor | None,
    *,
    with_error: bool = False,
    other: Form | None = None,
) -> Pass:
    """Return P and I of each image and class (N, C), weighted by q, and φ, the error and another φ if asked for.

    Beside ``other``, φ is ℓ. One of the two at most is a form of all probabilities.
    """
    if not (form is None or with_error or parameters(form)[0] in OF_LOSS):
        overlap, _, _, value = values_and_overlap(logits, labels, None, weight, other=form)
        return Pass(overlap, value, None)
    value, error, beside, *tables = _run(logits, labels, form, weight, with_error, other, with_overlap=True)
    probability, own = tables
    assert probability is not None
    assert own is not None
    return Pass(Overlap(probability, own), value, error, beside)


def loss_and_form(
    logits: Logits, labels: Labels, loss: CrossEntropy, form: Form, *, with_error: bool = False
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return ℓ, the error if it is asked for, and φ of a form of all probabilities."""
    value, error, beside, *_ = _run(logits, labels, loss, None, with_error, form, with_overlap=False)
    assert value is not None
    assert beside is not None
    return value, error, beside


def _run(
    logits: Logits,
    labels: Labels,
    form: Form | None,
    weight: Tensor | None,
    with_error: bool,
    other: Form | None,
    *,
    with_overlap: bool,
) -> list[Tensor | None]:
    """Return φ, the error, another φ, P and I, ``None`` for what is not asked for."""
    input, bias, single = at_full_size(logits)
    form = CrossEntropy() if with_error else form
    kind, numbers, _ = _NO_FORM if form is None else parameters(form)
    of_all = _NO_FORM if other is None else parameters(other)
    found: tuple[Tensor, ...] = _OverlapPass.apply(  # type: ignore[no-untyped-call]
        *(input, labels.target, weight, labels.ignore_index),
        *(kind, numbers, with_error, bias, single, *of_all, with_overlap),
    )
    return _unpacked(found, kind, with_error, other is not None, with_overlap, with_overlap)


def _unpacked(found: Sequence[Tensor | None], *asked: object) -> list[Tensor | None]:
    """Return what was found, or ``None`` where it was not asked for."""
    left = iter(found)
    return [next(left) if is_asked else None for is_asked in asked]


class _OverlapPass(torch.autograd.Function):
    """What is asked of φ, the error, a form of all probabilities, and P and I of each image and class."""

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
        *of_all: Any,
    ) -> tuple[Tensor, ...]:
        norm, *found = _FORWARD(
            input, target, q, ignore_index, kind, numbers, with_error, bias, single, *of_all
        )
        all_kind, all_numbers, class_weight, with_overlap = of_all
        ctx.asked = kind, with_error, all_kind, with_overlap, with_overlap
        ctx.mark_non_differentiable(*found[bool(kind) : bool(kind) + with_error])
        ctx.set_materialize_grads(False)  # they would be zeros as large as the maps
        ctx.save_for_backward(input, target, q, norm, bias, class_weight)
        ctx.how = ignore_index, kind, numbers, single, all_kind, all_numbers
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 12
        input, target, q, norm, bias, class_weight = ctx.saved_tensors
        ignore_index, kind, numbers, single, all_kind, all_numbers = ctx.how
        value, _, beside, probability, own = _unpacked(grads, *ctx.asked)
        given = [grad for grad in (value, beside, probability, own) if grad is not None]
        if not given:
            return None, *nothing
        if any(needs_reference(grad) for grad in given):

            def outputs(input: Tensor) -> list[Tensor]:
                labels = Labels(target, classes(input.shape, single), ignore_index)
                form = form_of(kind, numbers, None) if kind else None
                other = form_of(all_kind, all_numbers, class_weight) if all_kind else None
                logits = Logits(input, None, bias, single)
                found = reference.values_and_overlap(logits, labels, form, q, other=other)
                return [*found.overlap, *(of for of in (found.value, found.other) if of is not None)]

            maps = compress((value, beside), (kind, all_kind))
            return by_reference(outputs, input, [probability, own, *maps]), *nothing
        read = bias, single
        if len(given) == 1 and value is not None:
            how = None, norm, ignore_index, kind, numbers
            return BACKWARD(value, input, target, *how, *read), *nothing
        if len(given) == 1 and beside is not None:
            how = class_weight, norm, ignore_index, all_kind, all_numbers
            return BACKWARD(beside, input, target, *how, *read), *nothing
        gradient = _BACKWARD(
            *(probability, own, value, input, target, q, norm, ignore_index, kind, *read),
            *(beside, all_kind, all_numbers, class_weight),
        )
        return gradient, *nothing


def _forward(
    input: Tensor,
    target: Tensor,
    q: Tensor | None,
    ignore_index: int,
    kind: str,
    numbers: Sequence[float],
    with_error: bool,
    bias: Tensor | None,
    single: bool,
    all_kind: str,
    all_numbers: Sequence[float],
    class_weight: Tensor | None,
    with_overlap: bool,
) -> list[Tensor]:
    of_all = all_kind, all_numbers, class_weight, with_overlap
    how = q, ignore_index, kind, numbers, with_error, bias, single, *of_all
    form = (all_kind, (*all_numbers,)) if all_kind else (kind, (*numbers,))
    plan = _forward_launches(ignore_index, *form, single, input.shape, input.stride())
    if plan is None:
        return _forward(input.contiguous(), target, *how)
    parts, add, join = plan
    norm, *found = outputs = _outputs(input, target, *how)
    value, error, beside, *tables = _unpacked(found, kind, with_error, all_kind, with_overlap, with_overlap)
    values = (beside, value) if all_kind else (value, None)
    num_classes, partial = classes(input.shape, single), None
    if with_overlap:
        partial = input.new_empty((2, input.shape[0], num_classes, parts), dtype=torch.float32)
    fits = all_fit(input.device)
    q = None if q is None else q.contiguous()
    maps = *values, error, norm, partial
    add(input, target.contiguous(), bias, class_weight, q, *maps, fits, *NO_SUMS)
    check_fit(fits, num_classes)
    if partial is not None:
        join(partial, *tables)
    return outputs


def _outputs(
    input: Tensor,
    target: Tensor,
    q: Tensor | None,
    ignore_index: int,
    kind: str,
    numbers: Sequence[float],
    with_error: bool,
    bias: Tensor | None,
    single: bool,
    all_kind: str,
    all_numbers: Sequence[float],
    class_weight: Tensor | None,
    with_overlap: bool,
) -> list[Tensor]:
    def new(*shape: int) -> Tensor:
        return input.new_empty(shape, dtype=torch.float32)

    table = input.shape[0], classes(input.shape, single)
    planes = 3 if kind == "focal" else 2
    maps = [new(*target.shape) for asked in (kind, with_error, all_kind) if asked]
    tables = [new(*table), new(*table)] if with_overlap else []
    return [new(planes, *target.shape), *maps, *tables]


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
    bias: Tensor | None,
    single: bool,
    beside: Tensor | None,
    all_kind: str,
    all_numbers: Sequence[float],
    class_weight: Tensor | None,
) -> Tensor:
    output = torch.empty_like(input)
    # Of sums over all images the gradient is one row, expanded.
    tables = [grad for grad in (probability, own) if grad is not None]
    is_shared = all(grad.stride(0) == 0 for grad in tables)
    if is_shared:
        probability, own = (None if grad is None else grad[:1] for grad in (probability, own))
    form = all_kind if beside is not None else "", (*all_numbers,)
    layouts = input.shape, input.stride(), output.stride()
    launch = _backward_launch(ignore_index, kind, *form, single, is_shared, *layouts)
    if launch is None:
        how = target, q, norm, ignore_index, kind, bias, single, beside, all_kind, all_numbers, class_weight
        return output.copy_(_backward(probability, own, value, input.contiguous(), *how))
    maps = (None if of is None else of.contiguous() for of in (q, probability, own, value, beside))
    q, *grads = maps
    launch(output, input, target.contiguous(), bias, class_weight, q, norm, *grads)
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
    num_classes, of_loss = classes(shape, single), kind in ("", *OF_LOSS)
    together = 4 if layout.strides[0][-1] == 1 else 1
    pixels = _PIXELS[together] if of_loss else _PIXELS_OF_ALL
    parts, cells = triton.cdiv(layout.inner, pixels), shape[0] * num_classes
    kind, numbers = for_kernel(kind or "cross entropy", numbers, num_classes)
    add = Launch(
        pixel_kernels.forward,
        layout.outer * parts,
        (*_places(layout, parts, ignore_index), *numbers, stride[1], *layout.strides[0]),
        (layout.row < layout.inner, kind, not of_loss, int(single), num_classes, UNROLLED, together, pixels),
        num_warps=1,
    )
    return parts, add, Launch(overlap_kernels.join_overlap, cells, (parts, cells * parts), (_PARTS,))


@lru_cache(maxsize=1 << 10)
def _backward_launch(
    ignore_index: int,
    kind: str,
    all_kind: str,
    all_numbers: Sequence[float],
    single: bool,
    is_shared: bool,
    shape: Sequence[int],
    *strides: Sequence[int],
) -> Launch | None:
    layout = image_layout(shape, *strides)
    if layout is None:
        return None
    num_classes = classes(shape, single)
    all_kind, numbers = for_kernel(all_kind, all_numbers, num_classes) if all_kind else ("", (0.0,) * 4)
    together = 2 if all_kind else 4  # neighbours of a thread
    block = THREADS * (together if layout.strides[0][-1] == 1 else 1)
    blocks = triton.cdiv(layout.inner, block)
    steps = (step for of, places in zip(strides, layout.strides, strict=True) for step in (of[1], *places))
    table_step = 0 if is_shared else num_classes
    return Launch(
        overlap_kernels.overlap_backward,
        layout.outer * blocks,
        (*_places(layout, blocks, ignore_index), *numbers, table_step, *steps),
        (layout.row < layout.inner, kind == "focal", all_kind, int(single), num_classes, _UNROLLED, block),
    )


def _places(layout: Layout, blocks: int, ignore_index: int) -> tuple[int, ...]:
    return layout.outer, layout.inner, blocks, ignore_index, layout.row


_READ = "Tensor? bias, bool single"
_OF_ALL = "str all_kind, float[] all_numbers, Tensor? class_weight"
_FORWARD = define(
    "cuda_overlap_forward(Tensor input, Tensor target, Tensor? q, int ignore_index, str kind, float[] numbers, "
    f"bool with_error, {_READ}, {_OF_ALL}, bool with_overlap) -> Tensor[]",
    _forward,
    _outputs,
)
_BACKWARD = define(
    "cuda_overlap_backward(Tensor? probability, Tensor? own, Tensor? value, Tensor input, Tensor target, "
    f"Tensor? q, Tensor norm, int ignore_index, str kind, {_READ}, Tensor? beside, {_OF_ALL}) -> Tensor",
    _backward,
    lambda probability, own, value, logits, *_: torch.empty_like(logits),
)
