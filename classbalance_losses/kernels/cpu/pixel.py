r"""The pixel pass on a CPU: φ of each pixel by one pass over the logits, its gradient by another.

Forward reads the logits from memory once, and keeps :math:`s = \log \sum_k e^{x_k - \max}` of each pixel; backward
reads them once, finds the largest again, and writes :math:`g (u_k - p_k \sum_j u_j)` once. Half logits have half the
size, and as few as 11 classes of them are 22 bytes a pixel: there s is not kept, but found again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classbalance_losses.kernels import reference
from classbalance_losses.kernels.call import Labels, Logits, Resize
from classbalance_losses.kernels.cpu import pixel_loops as loops
from classbalance_losses.kernels.cpu import upsample, upsample_loops
from classbalance_losses.kernels.cpu.memory import address, hand_over_labels
from classbalance_losses.kernels.cpu.threads import run
from classbalance_losses.kernels.cpu.tiles import PITCH
from classbalance_losses.kernels.forms.cpu import fill, form_of, parameters
from classbalance_losses.kernels.forms.reference import CrossEntropy, Form
from classbalance_losses.kernels.operators import by_reference, define
from classbalance_losses.kernels.plain import needs_reference
from classbalance_losses.kernels.reference import class_rows

_LOGITS = 1 << 16  # that a thread takes at a time: 256 KiB
_PIXELS = PITCH  # at most: its numbers of a pixel stay in the first-level cache
_FEW = 16  # at least, however many classes there are: a vector or two
_PARTS = 64  # of the pixels, whose sums are added up apart
_TABLES = 1 << 21  # sums in all of them: 16 MiB


def pixel_values(logits: Logits, labels: Labels, form: Form) -> Tensor:
    """Return φ of each pixel (N, *) in float32, 0 where its label is ignored, with the gradient of the logits."""
    input, align_corners = upsample.taken(logits)
    value, _ = _PixelPass.apply(  # type: ignore[no-untyped-call]
        input, labels.target, labels.ignore_index, align_corners, *parameters(form), False
    )
    return value  # type: ignore[no-any-return]


def cross_entropy_and_error(logits: Logits, labels: Labels) -> tuple[Tensor, Tensor]:
    r"""Return the cross-entropy, and the constant :math:`\lVert p_i - e_{y_i} \rVert^2` (N, *)."""
    input, align_corners = upsample.taken(logits)
    value, error = _PixelPass.apply(  # type: ignore[no-untyped-call]
        input, labels.target, labels.ignore_index, align_corners, *parameters(CrossEntropy()), True
    )
    return value, error


def error_sums(logits: Logits, labels: Labels, weight: Tensor | None, *, squared: bool) -> Tensor:
    r"""Return :math:`\sum_{y_i = a} q_i \delta_{ib}`, or of :math:`\delta_{ib}^2` without q, (C, C), a constant."""
    input, align_corners = upsample.taken(logits)
    weight = None if squared else weight
    table: Tensor = _ERROR_SUMS(
        input.detach(), labels.target, weight, labels.ignore_index, align_corners, squared
    )
    return table


class _PixelPass(torch.autograd.Function):
    """φ of each pixel and, if asked, the error; its backward by the loops, or by the reference.

    Logits are enlarged to the labels' size unless ``align_corners`` is ``None``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        ignore_index: int,
        align_corners: bool | None,
        code: int,
        numbers: list[float],
        weight: Tensor | None,
        with_error: bool,
    ) -> tuple[Tensor, Tensor]:
        constants = (ignore_index, align_corners, code, numbers)
        value, error, log_sum = _FORWARD(input, target, *constants, weight, with_error)
        ctx.save_for_backward(input, target, weight, log_sum)
        ctx.constants = constants
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(error)
        return value, error

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 8
        input, target, weight, log_sum = ctx.saved_tensors
        if needs_reference(grad):
            ignore_index, align_corners, code, numbers = ctx.constants
            labels, form = Labels(target, input.shape[1], ignore_index), form_of(code, numbers, weight)
            resize = None if align_corners is None else Resize(tuple(target.shape[1:]), align_corners)

            def values(input: Tensor) -> tuple[Tensor]:
                logits = upsample.in_single(Logits(input, resize))
                return (reference.pixel_values(logits, labels, form),)

            gradient = by_reference(values, input, (grad,))
        else:
            gradient = _BACKWARD(grad, input, target, log_sum, *ctx.constants, weight)
        return (gradient, *(None,) * 7)


def _forward(
    input: Tensor,
    target: Tensor,
    ignore_index: int,
    align_corners: bool | None,
    code: int,
    numbers: Sequence[float],
    weight: Tensor | None,
    with_error: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    maps = _maps(input, target, ignore_index, align_corners, code, numbers, weight, with_error)
    names = ("value", "error", "log_sum")
    given = {name: made for name, made in zip(names, maps, strict=True) if made.numel()}
    target = target.contiguous()
    _kept, task, job = _prepared(input, target, ignore_index, align_corners, **given)
    fill(job["form"], code, numbers, weight, input.shape[1])
    run(task, job)
    return maps


def _maps(
    input: Tensor,
    target: Tensor,
    ignore_index: int,
    align_corners: bool | None,
    code: int,
    numbers: Sequence[float],
    weight: Tensor | None,
    with_error: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Make φ, the error if asked, and log Σ if it is kept; those that are not are empty."""

    def new(is_wanted: bool) -> Tensor:
        shape = target.shape if is_wanted else (0,)
        return torch.empty(shape, dtype=torch.float32, device=input.device)

    is_kept = input.dtype == torch.float32 or align_corners is not None
    return new(True), new(with_error), new(is_kept)


def _backward(
    grad: Tensor,
    input: Tensor,
    target: Tensor,
    log_sum: Tensor,
    ignore_index: int,
    align_corners: bool | None,
    code: int,
    numbers: Sequence[float],
    weight: Tensor | None,
) -> Tensor:
    target, grad = target.contiguous(), grad.contiguous()
    given = {"slope": grad, "log_sum": log_sum}
    if align_corners is not None:
        x = upsample.source(input)
        gradient = torch.zeros_like(x)
        job = upsample.job_for(x, target, ignore_index, align_corners, **given, gradient=gradient)
        fill(job["form"], code, numbers, weight, input.shape[1])
        upsample.run_in_turns(job)
        return gradient.to(input.dtype)
    rows, gradient = class_rows(input), _like_input(grad, input)
    job = _job(rows, target, ignore_index, **given)
    fill(job["form"], code, numbers, weight, input.shape[1])
    _hand_over_rows(job, "gradient", class_rows(gradient), input.dtype)
    run(loops.go, job)
    return gradient


def _gradient(
    grad: Tensor,
    input: Tensor,
    target: Tensor,
    log_sum: Tensor,
    ignore_index: int,
    align_corners: bool | None,
    *_: object,
) -> Tensor:
    if align_corners is None:
        return _like_input(grad, input)
    return torch.empty_like(input, memory_format=torch.contiguous_format)


def _like_input(grad: Tensor, input: Tensor, *_: object) -> Tensor:
    """Make the gradient, in the layout of the logits unless their spatial axes could not be seen as one."""
    gradient = torch.empty_like(input)
    size, stride = gradient.shape, gradient.stride()
    is_flat = all(stride[d] == stride[d + 1] * size[d + 1] for d in range(2, input.ndim - 1))
    return gradient if is_flat else torch.empty_like(input, memory_format=torch.contiguous_format)


def _error_sums(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    align_corners: bool | None,
    squared: bool,
) -> Tensor:
    classes, target = input.shape[1], target.contiguous()
    # Parts, in the order of whose sums no thread has a say.
    parts = max(min(_PARTS, _TABLES // classes**2), 1)
    sums = torch.zeros(parts, classes, classes, dtype=torch.float64, device="cpu")
    given = {} if weight is None else {"slope": weight.contiguous()}
    _kept, task, job = _prepared(input, target, ignore_index, align_corners, **given)
    job["sums"], job["parts"], job["squared"] = sums.data_ptr(), parts, squared
    run(task, job)
    return sums.sum(0).T.float().contiguous()


def _table(input: Tensor, *_: object) -> Tensor:
    return torch.empty(input.shape[1], input.shape[1], dtype=torch.float32, device=input.device)


def _prepared(
    input: Tensor, target: Tensor, ignore_index: int, align_corners: bool | None, **maps: Tensor
) -> tuple[Tensor, Any, Any]:
    """Return the logits as a loop reads them, which the caller keeps alive, too, the loop, and its job."""
    if align_corners is None:
        rows = class_rows(input)
        return rows, loops.go, _job(rows, target, ignore_index, **maps)
    source = upsample.source(input)
    return (
        source,
        upsample_loops.pixel_pass,
        upsample.job_for(source, target, ignore_index, align_corners, **maps),
    )


def _job(rows: Tensor, target: Tensor, ignore_index: int, **maps: Tensor) -> Any:
    """Return the sizes, and the addresses of logits (N, C, P), labels and maps, which the caller keeps alive."""
    job = np.zeros(1, loops.JOB)
    job["images"], job["classes"], job["pixels"] = images, classes, pixels = rows.shape
    job["size"] = size = max(min(_PIXELS, _LOGITS // classes), _FEW)
    job["parts"] = images * -(-pixels // size)
    job["type"] = loops.TYPES[rows.dtype]
    hand_over_labels(job, target, ignore_index, (images, pixels))
    _hand_over_rows(job, "x", rows, rows.dtype)
    for name, values in maps.items():
        if values.numel():
            is_laid_out = values.is_contiguous()
            job[name] = address(name, values, torch.float32, (images, pixels), is_laid_out=is_laid_out)
    return job


def _hand_over_rows(job: Any, name: str, rows: Tensor, dtype: torch.dtype) -> None:
    """Write the address and the strides of logits (N, C, P), or of their gradient."""
    shape = [int(job[key][0]) for key in ("images", "classes", "pixels")]
    job[name] = address(name, rows, dtype, shape, is_laid_out=list(rows.shape) == shape)
    job[f"{name}_image"], job[f"{name}_class"], job[f"{name}_pixel"] = rows.stride()
    if shape[-1] == 1:  # whatever its stride is
        job[f"{name}_pixel"] = 1


_FORWARD = define(
    "cpu_pixel_forward(Tensor input, Tensor target, int ignore_index, bool? align_corners, int form, "
    "float[] numbers, Tensor? weight, bool with_error) -> (Tensor, Tensor, Tensor)",
    _forward,
    _maps,
)
_BACKWARD = define(
    "cpu_pixel_backward(Tensor grad, Tensor input, Tensor target, Tensor log_sum, int ignore_index, "
    "bool? align_corners, int form, float[] numbers, Tensor? weight) -> Tensor",
    _backward,
    _gradient,
)
_ERROR_SUMS = define(
    "cpu_error_sums(Tensor input, Tensor target, Tensor? weight, int ignore_index, bool? align_corners, "
    "bool squared) -> Tensor",
    _error_sums,
    _table,
)
