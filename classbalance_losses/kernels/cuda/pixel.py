r"""A form of each pixel on CUDA, in one pass over the logits each way.

A thread takes a few neighbouring pixels and all their classes, four at a time, by an online softmax: nothing crosses
threads, so there is neither shared memory nor a barrier.

- Forward reads each logit once and writes φ and, if asked, :math:`\lVert p - e_y \rVert^2`. For backward it keeps max
  and :math:`\log \sum_k e^{x_k - \max}`, two numbers a pixel: their sum, at logits of 10⁴, would be off by 5·10⁻⁴, and
  every probability with it. A third one is the slope :math:`d\varphi / d\ell`, where that is not 1.
- Backward reads each logit once and writes :math:`(p_k - [k = y])\, g` once, in the dtype and layout of the logits.

A form of all probabilities is found in a second round over a pixel's logits, which are in the cache by then; its
backward goes over them twice as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from classbalance_losses.kernels import reference
from classbalance_losses.kernels.call import Labels, Logits
from classbalance_losses.kernels.cuda import pixel_kernels as kernels
from classbalance_losses.kernels.cuda.common import (
    Launch,
    all_fit,
    check_fit,
    define,
    pixel_layout,
)
from classbalance_losses.kernels.forms.cuda import OF_LOSS, for_kernel, form_of
from classbalance_losses.kernels.operators import by_reference
from classbalance_losses.kernels.plain import needs_reference

UNROLLED = 32  # classes of one round: a multiple of 4
THREADS = 128  # of a program: four warps, as Triton has it
_LANES = 32  # of a program that sums up its pixels: one warp, so that nothing crosses warps
NO_SUMS = (None,) * 3  # of what is launched for `weighted` and `mined` alone
_NO_SLOPES = (None,) * 8
_GROUPS = 128  # of logits, of a program, where a pixel's logits are neighbours: one a thread


def pixel_pass(
    logits: Logits,
    labels: Labels,
    kind: str,
    numbers: list[float],
    weight: Tensor | None,
    *,
    with_error: bool = False,
) -> tuple[Tensor, ...]:
    """Return φ (N, *) of the form that its parameters stand for and, if asked, ‖p − e_y‖², a constant."""
    input, bias, single = at_full_size(logits)
    target, ignore_index = labels.target, labels.ignore_index
    found: tuple[Tensor, ...] = _PixelPass.apply(  # type: ignore[no-untyped-call]
        input, target, ignore_index, kind, numbers, weight, with_error, bias, single
    )
    return found


def at_full_size(logits: Logits) -> tuple[Tensor, Tensor | None, bool]:
    """Return the logits at the target's size, the bias, and whether they are one a pixel."""
    input = logits.input if logits.resize is None else logits.resize(logits.input)
    return input, logits.bias, logits.single


class _PixelPass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        ignore_index: int,
        kind: str,
        numbers: list[float],
        weight: Tensor | None,
        with_error: bool,
        bias: Tensor | None,
        single: bool,
    ) -> tuple[Tensor, ...]:
        value, norm, *error = FORWARD(
            input, target, weight, ignore_index, kind, numbers, with_error, bias, single
        )
        ctx.mark_non_differentiable(*error)
        ctx.set_materialize_grads(False)  # they would be zeros as large as the maps
        ctx.save_for_backward(input, target, weight, norm, bias)
        ctx.how = ignore_index, kind, numbers, single
        return value, *error

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 9
        input, target, weight, norm, bias = ctx.saved_tensors
        ignore_index, kind, numbers, single = ctx.how
        if not needs_reference(grad):
            how = ignore_index, kind, numbers, bias, single
            return BACKWARD(grad, input, target, weight, norm, *how), *(None,) * 8

        def values(input: Tensor) -> tuple[Tensor]:
            logits = Logits(input, None, bias, single)
            labels = Labels(target, classes(input.shape, single), ignore_index)
            return (reference.pixel_values(logits, labels, form_of(kind, numbers, weight)),)

        return by_reference(values, input, (grad,)), *(None,) * 8


def classes(shape: Sequence[int], single: bool) -> int:
    """Return how many classes logits of a shape (N, C, *) have."""
    return 2 if single else shape[1]


def _forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    kind: str,
    numbers: Sequence[float],
    with_error: bool,
    bias: Tensor | None = None,
    single: bool = False,
) -> list[Tensor]:
    how = weight, ignore_index, kind, numbers, with_error, bias, single
    plan = plan_for(ignore_index, kind, (*numbers,), single, input.shape, input.stride())
    if plan is None:
        return _forward(input.contiguous(), target, *how)
    value, norm, *error = outputs = _outputs(input, target, *how)
    fits = all_fit(input.device)
    maps = value, None, error[0] if error else None, norm
    plan(input, target.contiguous(), bias, weight, None, *maps, None, fits, *NO_SUMS)
    check_fit(fits, classes(input.shape, single))
    return outputs


def _outputs(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    kind: str,
    numbers: Sequence[float],
    with_error: bool,
    *_: Any,
) -> list[Tensor]:
    def new(*shape: int) -> Tensor:
        return input.new_empty(shape, dtype=torch.float32)

    planes = 3 if kind == "focal" else 2
    outputs = [new(*target.shape), new(planes, *target.shape)]
    return [*outputs, new(*target.shape)] if with_error else outputs


def _backward(
    grad: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    norm: Tensor,
    ignore_index: int,
    kind: str,
    numbers: Sequence[float],
    bias: Tensor | None = None,
    single: bool = False,
) -> Tensor:
    output = torch.empty_like(input)
    plan = plan_for(ignore_index, kind, (*numbers,), single, input.shape, input.stride(), output.stride())
    if plan is None:
        how = ignore_index, kind, numbers, bias, single
        return output.copy_(_backward(grad, input.contiguous(), target, weight, norm, *how))
    plan(input, target.contiguous(), bias, weight, norm, output, grad.contiguous(), *_NO_SLOPES)
    return output


@lru_cache(maxsize=1 << 10)
def plan_for(
    ignore_index: int,
    kind: str,
    numbers: Sequence[float],
    single: bool,
    shape: Sequence[int],
    *strides: Sequence[int],
    has_sums: bool = False,
) -> Launch | None:
    """Return the launch of forward, for the logits' strides, or of backward, for theirs and the gradient's.

    ``has_sums``: its programs sum up their values. ``None`` where pixels lie along too many axes that cannot be taken
    as one.
    """
    layout = pixel_layout(shape, *strides)
    if layout is None:
        return None
    num_classes, of_loss = classes(shape, single), kind in OF_LOSS
    rows = (0, 0, num_classes)  # a pixel's logits are neighbours, as are pixels
    in_rows = all(of[1] == 1 for of in strides) and layout.outer == 1 and layout.strides == (rows, rows)
    for_code, numbers = for_kernel(kind, numbers, num_classes)
    if in_rows and of_loss and num_classes >= 4:
        each = min(triton.next_power_of_2(num_classes + 1) // 2, 16)
        programs = triton.cdiv(layout.inner * num_classes, each * _GROUPS)
        return Launch(
            *(kernels.backward_of_rows, programs),
            *((layout.inner, ignore_index), (for_code, num_classes, each, _GROUPS)),
        )
    together = 4 if layout.strides[0][-1] == 1 else 1  # of neighbours a thread takes 16 bytes
    threads = _LANES if has_sums else THREADS
    blocks = triton.cdiv(layout.inner, together * threads)
    return Launch(
        kernels.forward if len(strides) == 1 else kernels.backward,
        layout.outer * blocks,
        (
            *(layout.outer, layout.inner, blocks, ignore_index, layout.row, *numbers),
            *(step for of, places in zip(strides, layout.strides, strict=True) for step in (of[1], *places)),
        ),
        (
            *(layout.row < layout.inner, for_code, not of_loss, int(single), num_classes),
            *(UNROLLED, together, together * threads),
        ),
        num_warps=threads // 32,
    )


_FORM = "int ignore_index, str kind, float[] numbers"
_READ = "Tensor? bias=None, bool single=False"
FORWARD = define(
    "cuda_pixel_forward(Tensor input, Tensor target, Tensor? weight, "
    f"{_FORM}, bool with_error, {_READ}) -> Tensor[]",
    _forward,
    _outputs,
)
BACKWARD = define(
    "cuda_pixel_backward(Tensor grad, Tensor input, Tensor target, Tensor? weight, Tensor norm, "
    f"{_FORM}, {_READ}) -> Tensor",
    _backward,
    lambda grad, logits, *_: torch.empty_like(logits),
)
