r"""The pixel pass on a CPU: φ of each pixel and sums of probabilities by one pass over the logits, the gradient by one.

Forward reads the logits from memory once, and keeps :math:`s = \log \sum_k e^{x_k - \max}` of each pixel; backward
reads them once, finds the largest again, and writes :math:`g (u_k - p_k \sum_j u_j)` once. Half logits have half the
size, and as few as 11 classes of them are 22 bytes a pixel, as two classes are 8: there s is not kept, but found again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classbalance_losses.kernels import reference
from classbalance_losses.kernels.call import Labels, Logits, Overlap, Pass, Resize
from classbalance_losses.kernels.cpu import pixel_loops as loops
from classbalance_losses.kernels.cpu import strided, upsample, upsample_loops
from classbalance_losses.kernels.cpu.memory import hand_over
from classbalance_losses.kernels.cpu.threads import run
from classbalance_losses.kernels.cpu.tiles import FIELDS
from classbalance_losses.kernels.factors import class_rows
from classbalance_losses.kernels.forms.cpu import NO_FORM, fill, form_of, parameters
from classbalance_losses.kernels.forms.reference import CrossEntropy, Form
from classbalance_losses.kernels.operators import by_reference, define
from classbalance_losses.kernels.plain import needs_reference

PARTS = 64  # of the pixels, or of an image's, whose sums are added up apart
_TABLES = 1 << 21  # sums in all of them: 16 MiB


def pixel_values(logits: Logits, labels: Labels, form: Form) -> Tensor:
    """Return φ of each pixel (N, *) in float32, 0 where its label is ignored, with the gradient of the logits."""
    value, _, _ = _run_pass(logits, labels, form)
    return value


def cross_entropy_and_error(logits: Logits, labels: Labels) -> tuple[Tensor, Tensor]:
    r"""Return the cross-entropy, and the constant :math:`\lVert p_i - e_{y_i} \rVert^2` (N, *)."""
    value, error, _ = _run_pass(logits, labels, CrossEntropy(), with_error=True)
    return value, error


def values_and_overlap(
    logits: Logits, labels: Labels, form: Form | None, weight: Tensor | None, *, with_error: bool = False
) -> Pass:
    """Return the sums of probabilities, weighted by q, and φ and the error if a form, or the error, is asked for."""
    if logits.input.ndim == 2:  # each pixel is an image
        one = Logits(logits.input.unsqueeze(2), None, logits.bias, logits.single)
        of_one = labels._replace(target=labels.target.unsqueeze(1))
        q = None if weight is None else weight.unsqueeze(1)
        overlap, *maps = values_and_overlap(one, of_one, form, q, with_error=with_error)
        return Pass(overlap, *(None if values is None else values.squeeze(1) for values in maps))
    form = CrossEntropy() if with_error else form
    value, error, sums = _run_pass(logits, labels, form, weight, with_error=with_error, with_overlap=True)
    overlap = Overlap(*sums.unbind(1))
    return Pass(overlap, None if form is None else value, error if with_error else None)


def error_sums(logits: Logits, labels: Labels, weight: Tensor | None, *, squared: bool) -> Tensor:
    r"""Return :math:`\sum_{y_i = a} q_i \delta_{ib}`, or of :math:`\delta_{ib}^2` without q, (C, C), a constant."""
    input, align_corners = upsample.taken(logits)
    weight = None if squared else weight
    constants = (labels.ignore_index, align_corners, squared, logits.bias, logits.single)
    table: Tensor = _ERROR_SUMS(input.detach(), labels.target, weight, *constants)
    return table


def _run_pass(
    logits: Logits,
    labels: Labels,
    form: Form | None,
    weight: Tensor | None = None,
    *,
    with_error: bool = False,
    with_overlap: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return φ, the error, and the overlap (N, 2, C), which are empty where they are not asked for."""
    input, align_corners = upsample.taken(logits)
    constants = (labels.ignore_index, align_corners, *parameters(form), with_error)
    return _PixelPass.apply(  # type: ignore[no-any-return, no-untyped-call]
        input, labels.target, *constants, logits.bias, logits.single, weight, with_overlap
    )


class _PixelPass(torch.autograd.Function):
    """φ of each pixel and, if asked, the error and the overlap; its backward by the loops, or by the reference.

    Logits are enlarged to the labels' size unless ``align_corners`` is ``None``.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, target: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
        value, error, log_sum, overlap = FORWARD(input, target, *given)
        *constants, weight, _, bias, single, pixel_weight, with_overlap = given
        ctx.save_for_backward(input, target, weight, log_sum, bias, pixel_weight)
        ctx.constants, ctx.single, ctx.with_overlap = constants, single, with_overlap
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(error)
        return value, error, overlap

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, _: Tensor | None, overlap_grad: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        # What was not asked for may have a gradient, as empty as itself, in a compiled graph.
        grad = None if ctx.constants[2] == NO_FORM else grad
        overlap_grad = overlap_grad if ctx.with_overlap else None
        grads = [of_output for of_output in (grad, overlap_grad) if of_output is not None]
        gradient = None
        if any(needs_reference(of_output) for of_output in grads):
            gradient = _by_reference(ctx, grad, overlap_grad)
        elif grads:
            input, target, weight, log_sum, *others = ctx.saved_tensors
            bias, pixel_weight = others
            given = (*ctx.constants, weight, bias, ctx.single, pixel_weight, overlap_grad)
            gradient = BACKWARD(grad, input, target, log_sum, *given)
        return (gradient, *(None,) * 11)


def as_called(ctx: Any, input: Tensor) -> tuple[Logits, Labels]:
    """Return what the reference takes in the place of a pass whose context is given."""
    _, target, _, _, bias, *_ = ctx.saved_tensors
    ignore_index, align_corners, _, _ = ctx.constants
    resize = None if align_corners is None else Resize(tuple(target.shape[1:]), align_corners)
    logits = upsample.in_single(Logits(input, resize, bias, ctx.single))
    return logits, Labels(target, classes_of(input, ctx.single), ignore_index)


def _by_reference(ctx: Any, grad: Tensor | None, overlap_grad: Tensor | None) -> Tensor:
    input, _, weight, *_, pixel_weight = ctx.saved_tensors
    code, numbers = ctx.constants[2:]

    def outputs(input: Tensor) -> list[Tensor]:
        (logits, labels), found = as_called(ctx, input), []
        if grad is not None:
            found.append(reference.pixel_values(logits, labels, form_of(code, numbers, weight)))
        if overlap_grad is not None:
            overlap = reference.values_and_overlap(logits, labels, None, pixel_weight).overlap
            found.append(torch.stack(overlap, 1))
        return found

    return by_reference(outputs, input, [given for given in (grad, overlap_grad) if given is not None])


def _forward(
    input: Tensor,
    target: Tensor,
    ignore_index: int,
    align_corners: bool | None,
    code: int,
    numbers: Sequence[float],
    weight: Tensor | None,
    with_error: bool,
    bias: Tensor | None = None,
    single: bool = False,
    pixel_weight: Tensor | None = None,
    with_overlap: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    constants = (ignore_index, align_corners, code, numbers, weight)
    *maps, overlap = _outputs(input, target, *constants, with_error, bias, single, pixel_weight, with_overlap)
    given = zip(("value", "error", "log_sum"), maps, strict=True)
    tensors: dict[str, Tensor | None] = {name: made for name, made in given if made.numel()}
    tensors |= {"bias": bias, "pixel_weight": pixel_weight if with_overlap else None}
    _kept, task, job = prepared(input, target, ignore_index, align_corners, single, tensors)
    job["with_error"] = with_error
    fill(job["form"], code, numbers, weight, int(job["classes"][0]))
    if with_overlap:
        _add_overlap(task, job, overlap)
    else:
        strided.share_out(job)
        run(task, job)
    return maps[0], maps[1], maps[2], overlap


def _outputs(
    input: Tensor,
    target: Tensor,
    ignore_index: int,
    align_corners: bool | None,
    code: int,
    numbers: Sequence[float],
    weight: Tensor | None,
    with_error: bool,
    bias: Tensor | None = None,
    single: bool = False,
    pixel_weight: Tensor | None = None,
    with_overlap: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Make φ, the error if asked, log Σ if it is kept, and the overlap; those that are not are empty."""
    classes = classes_of(input, single)
    is_kept = strided.keeps_log_sum(input, classes, is_enlarged=align_corners is not None)

    def new(is_wanted: bool, shape: Sequence[int] = target.shape) -> Tensor:
        return torch.empty(shape if is_wanted else (0,), dtype=torch.float32, device=input.device)

    return (
        new(code != NO_FORM),
        new(with_error),
        new(is_kept),
        new(with_overlap, (input.shape[0], 2, classes)),
    )


def classes_of(input: Tensor, single: bool) -> int:
    """Return C."""
    return 2 if single else input.shape[1]


def _add_overlap(task: Any, job: Any, overlap: Tensor) -> None:
    """Run the loop, and add up an image's parts, in the order of whose sums no thread has a say."""
    images, _, classes = overlap.shape
    parts = min(int(job["parts"][0]) // max(images, 1), PARTS)
    job["parts"] = images * parts
    table = np.zeros((images, parts, 2, classes))
    hand_over(job, FIELDS, {"overlap": torch.from_numpy(table)})
    run(task, job)
    overlap.copy_(torch.from_numpy(table.sum(1)))


def _backward(
    grad: Tensor | None,
    input: Tensor,
    target: Tensor,
    log_sum: Tensor,
    ignore_index: int,
    align_corners: bool | None,
    code: int,
    numbers: Sequence[float],
    weight: Tensor | None,
    bias: Tensor | None = None,
    single: bool = False,
    pixel_weight: Tensor | None = None,
    overlap_grad: Tensor | None = None,
    coefficient: Tensor | None = None,
    ranked: Tensor | None = None,
    threshold: Tensor | None = None,
    tied_share: Tensor | None = None,
) -> Tensor:
    is_kept = strided.keeps_log_sum(input, classes_of(input, single), is_enlarged=align_corners is not None)
    tensors = {"slope": grad, "log_sum": log_sum if is_kept else None, "bias": bias}
    if overlap_grad is not None or coefficient is not None:
        tensors |= {"overlap_slope": overlap_grad, "coefficient": coefficient, "pixel_weight": pixel_weight}
    kept, task, job = prepared(input, target, ignore_index, align_corners, single, tensors)
    if threshold is not None:
        job["rows"] = threshold.numel()
        hard = {"ranked": ranked, "threshold": threshold, "tied_share": tied_share}
        given = {name: made.contiguous() for name, made in hard.items() if made is not None}
        hand_over(job, FIELDS, given)
        kept += given.values()
    fill(job["form"], code, numbers, weight, int(job["classes"][0]))
    if align_corners is not None:
        gradient = torch.zeros_like(kept[0])
        hand_over(job, upsample_loops.FIELDS, {"gradient": gradient})
        upsample.run_in_turns(job)
        return gradient.to(input.dtype)
    gradient = strided.like(input)
    strided.hand_over_rows(job, "gradient", class_rows(gradient), input.dtype)
    strided.share_out(job)
    run(task, job)
    return gradient


def _gradient(
    grad: Tensor | None,
    input: Tensor,
    target: Tensor,
    log_sum: Tensor,
    ignore_index: int,
    align_corners: bool | None,
    *_: object,
) -> Tensor:
    if align_corners is None:
        return strided.like(input)
    return torch.empty_like(input, memory_format=torch.contiguous_format)


def _error_sums(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    align_corners: bool | None,
    squared: bool,
    bias: Tensor | None = None,
    single: bool = False,
) -> Tensor:
    tensors = {"bias": bias, "pixel_weight": weight}
    _kept, task, job = prepared(input, target, ignore_index, align_corners, single, tensors)
    classes = int(job["classes"][0])
    # Parts, in the order of whose sums no thread has a say.
    job["parts"] = parts = max(min(PARTS, _TABLES // classes**2), 1)
    sums = torch.zeros(parts, classes, classes, dtype=torch.float64, device="cpu")
    hand_over(job, FIELDS, {"sums": sums})
    job["squared"] = squared
    run(task, job)
    return sums.sum(0).T.float().contiguous()


def _table(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    align_corners: bool | None,
    squared: bool,
    bias: Tensor | None = None,
    single: bool = False,
) -> Tensor:
    classes = classes_of(input, single)
    return torch.empty(classes, classes, dtype=torch.float32, device=input.device)


def prepared(
    input: Tensor,
    target: Tensor,
    ignore_index: int,
    align_corners: bool | None,
    single: bool,
    tensors: Mapping[str, Tensor | None],
) -> tuple[list[Tensor], Any, Any]:
    """Return tensors that the caller keeps alive, logits first, the loop, and its job, which has their addresses."""
    target = target.contiguous()
    given = {name: values for name, values in tensors.items() if values is not None}
    # What forward kept is as it was made, or refused.
    maps = {name: made if name == "log_sum" else made.contiguous() for name, made in given.items()}
    if align_corners is None:
        x = class_rows(input)
        return [x, target, *maps.values()], loops.go, strided.job_for(x, target, ignore_index, single, **maps)
    x = upsample.source(input)
    job = upsample.job_for(x, target, ignore_index, align_corners, single, **maps)
    return [x, target, *maps.values()], upsample_loops.pixel_pass, job


FORWARD = define(
    "cpu_pixel_forward(Tensor input, Tensor target, int ignore_index, bool? align_corners, int form, "
    "float[] numbers, Tensor? weight, bool with_error, Tensor? bias=None, bool single=False, "
    "Tensor? pixel_weight=None, bool with_overlap=False) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _outputs,
)
BACKWARD = define(
    "cpu_pixel_backward(Tensor? grad, Tensor input, Tensor target, Tensor log_sum, int ignore_index, "
    "bool? align_corners, int form, float[] numbers, Tensor? weight, Tensor? bias=None, "
    "bool single=False, Tensor? pixel_weight=None, Tensor? overlap_grad=None, Tensor? coefficient=None, "
    "Tensor? ranked=None, Tensor? threshold=None, Tensor? tied_share=None) -> Tensor",
    _backward,
    _gradient,
)
_ERROR_SUMS = define(
    "cpu_error_sums(Tensor input, Tensor target, Tensor? weight, int ignore_index, bool? align_corners, "
    "bool squared, Tensor? bias=None, bool single=False) -> Tensor",
    _error_sums,
    _table,
)
