"""The kernels of the pixel pass over full-size logits: ``pixel`` says how they go over them."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl

from classbalance_losses.kernels.cuda.class_kernels import hard_of, weighted, weighted_slope
from classbalance_losses.kernels.cuda.device import (
    LOG2E,
    LOWEST,
    add_classes,
    address,
    as_class,
    delta,
    exp,
    finish,
    labels,
    load_class,
    load_classes,
    of_kept,
    place,
    refuse,
    with_bias,
)
from classbalance_losses.kernels.cuda.overlap_kernels import write_parts
from classbalance_losses.kernels.forms.cuda import as_tensors, of_loss, slope, sums, total_slope, value


@triton.jit(do_not_specialize=["outer_count", "blocks", "ignore_index"])
def forward(
    input_ptr, target_ptr, bias_ptr, weight_ptr, q_ptr, value_ptr, loss_ptr, error_ptr, norm_ptr, partial_ptr, fits_ptr,
    class_weight_ptr, norm_weight_ptr, sums_ptr,
    outer_count, inner_count, blocks, ignore_index, row_size, n0, n1, n2, n3,
    stride_c, stride_outer, stride_row, stride_pixel,
    in_rows: tl.constexpr, kind: tl.constexpr, of_all: tl.constexpr, single: tl.constexpr,
    num_classes: tl.constexpr, unrolled: tl.constexpr, together: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Write what is asked of φ, ℓ, ‖p − e_y‖² and parts of sums, what backward needs, and if a label is none.

    Of a ``single`` logit a pixel, 1 and not 0, class 0 has no place in memory.
    """
    outer, inner, inside = place(inner_count, blocks, block)
    pixel = outer * inner_count + inner
    plane = outer_count.to(tl.int64) * inner_count
    label, kept = labels(target_ptr, pixel, inside, ignore_index, checked=False)
    of_own = as_class(label, num_classes)
    refuse(fits_ptr, kept & (of_own != label), together, block)
    target = label.to(tl.int32)
    logits = address(input_ptr, outer, inner, row_size, stride_outer, stride_row, stride_pixel, in_rows)
    step = tl.cast(stride_c, tl.int64)
    own = load_class(logits, bias_ptr, of_own, step, inside, single)

    top = tl.full((block,), LOWEST, tl.float32)
    others = tl.zeros((block,), tl.float32)
    squares = tl.zeros((block,), tl.float32)
    with_error: tl.constexpr = error_ptr is not None
    if single:
        x0 = with_bias(squares, bias_ptr, 0)
        top, others, squares = add_classes(x0, x0, x0, x0, 1, target, top, others, squares, with_error)
    left: tl.constexpr = num_classes % unrolled
    for start in range(0, num_classes - left, unrolled):
        for first in tl.static_range(0, unrolled, 4):
            k = start + first
            x0, x1, x2, x3 = load_classes(logits + k * step, bias_ptr, k, 4, step, inside)
            top, others, squares = add_classes(
                x0, x1, x2, x3, 4, target - k, top, others, squares, with_error
            )
    for k in tl.static_range(num_classes - left + single, num_classes, 4):
        at = logits + (k - single) * step
        x0, x1, x2, x3 = load_classes(at, bias_ptr, k, num_classes - k, step, inside)
        top, others, squares = add_classes(
            x0, x1, x2, x3, num_classes - k, target - k, top, others, squares, with_error
        )

    loss, p, missed, error, log_total = finish(top, others, squares, own)
    if kind == "cross entropy":
        found = loss
    elif not of_all:
        found, of_form = of_loss(kind, loss, p, missed, n0)
        tl.store(norm_ptr + 2 * plane + pixel, of_form, mask=inside)
    else:
        n0, n1, n2, n3 = as_tensors(n0, n1, n2, n3, block)
        s0, s1, s2, s3, s4 = sums(
            kind, False, logits, bias_ptr, step, inside, target, top, log_total, weight_ptr,
            n0, n1, n2, n3, single, num_classes, block,
        )  # fmt: skip
        found = value(kind, loss, n0, n1, n2, n3, s0, s1, s2, s3, s4)
    if value_ptr is not None:
        tl.store(value_ptr + pixel, tl.where(kept, found, 0.0), mask=inside)
    if sums_ptr is not None:
        total, of_norm = weighted(
            found, kept & inside, of_own, pixel, inside, class_weight_ptr, norm_weight_ptr, q_ptr, num_classes
        )  # fmt: skip
        sums_ptr += 2 * tl.program_id(0)
        tl.store(sums_ptr, tl.sum(total, 0))
        tl.store(sums_ptr + 1, tl.sum(of_norm, 0).to(tl.float32))
    if loss_ptr is not None:
        tl.store(loss_ptr + pixel, tl.where(kept, loss, 0.0), mask=inside)
    if with_error:
        tl.store(error_ptr + pixel, tl.where(kept, error, 0.0), mask=inside)
    tl.store(norm_ptr + pixel, top, mask=inside)
    tl.store(norm_ptr + plane + pixel, log_total, mask=inside)
    if partial_ptr is not None:
        write_parts(
            logits, bias_ptr, q_ptr, partial_ptr, outer_count, outer, blocks, pixel, inside, target, kept,
            top, log_total, step, single, num_classes, block,
        )  # fmt: skip


@triton.jit(do_not_specialize=["outer_count", "blocks", "ignore_index"])
def backward(
    input_ptr, target_ptr, bias_ptr, weight_ptr, norm_ptr, output_ptr, grad_ptr,
    of_mean_ptr, of_total_ptr, total_norm_ptr, class_weight_ptr, q_ptr, ranked_ptr, bits_ptr, share_ptr,
    outer_count, inner_count, blocks, ignore_index, row_size, n0, n1, n2, n3,
    stride_c, stride_outer, stride_row, stride_pixel,
    out_stride_c, out_stride_outer, out_stride_row, out_stride_pixel,
    in_rows: tl.constexpr, kind: tl.constexpr, of_all: tl.constexpr, single: tl.constexpr,
    num_classes: tl.constexpr, unrolled: tl.constexpr, together: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Write the gradient, (u_k - p_k Σ_j u_j) g: of a form of the cross-entropy ℓ (p_k - [k = y]) dφ/dℓ g.

    Without a map of g it follows from the gradients of sums, by class weights, q, and h of the pixels of H.
    """
    outer, inner, inside = place(inner_count, blocks, block)
    pixel = outer * inner_count + inner
    plane = outer_count.to(tl.int64) * inner_count
    label, kept = labels(target_ptr, pixel, inside, ignore_index, checked=True)
    target = tl.where(kept, label.to(tl.int32), -1)
    top = tl.load(norm_ptr + pixel, mask=inside, other=0.0)
    log_total = tl.load(norm_ptr + plane + pixel, mask=inside, other=0.0)
    grad = _grad(
        grad_ptr, of_mean_ptr, of_total_ptr, total_norm_ptr, class_weight_ptr, q_ptr, ranked_ptr, bits_ptr, share_ptr,
        label, pixel, inside, num_classes,
    )  # fmt: skip
    grad = of_kept(grad, kept, log_total)
    logits = address(input_ptr, outer, inner, row_size, stride_outer, stride_row, stride_pixel, in_rows)
    output = address(
        output_ptr, outer, inner, row_size, out_stride_outer, out_stride_row, out_stride_pixel, in_rows
    )
    step = tl.cast(stride_c, tl.int64)
    out_step = tl.cast(out_stride_c, tl.int64)

    if of_all:
        _write_all(
            kind, logits, output, bias_ptr, step, out_step, inside, target, kept, grad, top, log_total,
            weight_ptr, n0, n1, n2, n3, single, num_classes, block,
        )  # fmt: skip
    else:
        if kind != "cross entropy":
            grad *= tl.where(kept, tl.load(norm_ptr + 2 * plane + pixel, mask=inside, other=0.0), 0.0)
        log_total *= LOG2E
        left: tl.constexpr = num_classes % unrolled
        for start in range(0, num_classes - left, unrolled):
            for first in tl.static_range(0, unrolled, 4):
                k = start + first
                x0, x1, x2, x3 = load_classes(logits + k * step, bias_ptr, k, 4, step, inside)
                to = output + k * out_step
                _write(x0, x1, x2, x3, 4, to, out_step, inside, target - k, grad, top, log_total)
        for k in tl.static_range(num_classes - left + single, num_classes, 4):
            at = logits + (k - single) * step
            x0, x1, x2, x3 = load_classes(at, bias_ptr, k, num_classes - k, step, inside)
            to = output + (k - single) * out_step
            _write(x0, x1, x2, x3, num_classes - k, to, out_step, inside, target - k, grad, top, log_total)


@triton.jit
def _grad(
    grad_ptr, of_mean_ptr, of_total_ptr, total_norm_ptr, class_weight_ptr, q_ptr, ranked_ptr, bits_ptr, share_ptr,
        label, pixel, inside, num_classes,
):  # fmt: skip
    """Return the gradient of each pixel's value, from its map or as that of weighted sums, or of class sums over H."""
    if grad_ptr is None:
        grad = weighted_slope(
            total_norm_ptr, of_mean_ptr, of_total_ptr, label, pixel, inside, class_weight_ptr, q_ptr, num_classes
        )  # fmt: skip
        if ranked_ptr is not None:
            hard, tied, share = hard_of(ranked_ptr, bits_ptr, share_ptr, pixel, inside, 0)
            grad = tl.where(hard, tl.where(tied, grad * share, grad), 0.0)
    else:
        grad = tl.load(grad_ptr + pixel, mask=inside, other=0.0)
    return grad


@triton.jit
def _write(
    x0, x1, x2, x3, number: tl.constexpr, output, step, inside, target, grad, top, log_total
):  # fmt: skip
    """Write the gradient by the logits of up to four of ``number`` classes."""
    dtype = output.dtype.element_ty
    d0 = delta((x0 - top) * LOG2E - log_total, target == 0, grad)
    tl.store(output, d0.to(dtype), mask=inside)
    if number > 1:
        d1 = delta((x1 - top) * LOG2E - log_total, target == 1, grad)
        tl.store(output + step, d1.to(dtype), mask=inside)
    if number > 2:
        d2 = delta((x2 - top) * LOG2E - log_total, target == 2, grad)
        tl.store(output + 2 * step, d2.to(dtype), mask=inside)
    if number > 3:
        d3 = delta((x3 - top) * LOG2E - log_total, target == 3, grad)
        tl.store(output + 3 * step, d3.to(dtype), mask=inside)


@triton.jit
def _write_all(
    kind: tl.constexpr, logits, output, bias_ptr, step, out_step, inside, target, kept, grad, top, log_total,
    weight_ptr, n0, n1, n2, n3, single: tl.constexpr, num_classes, block: tl.constexpr,
):  # fmt: skip
    """Write the gradient of a form of all classes, going over them twice."""
    n0, n1, n2, n3 = as_tensors(n0, n1, n2, n3, block)
    s0, s1, s2, s3, s4 = sums(
        kind, True, logits, bias_ptr, step, inside, target, top, log_total, weight_ptr,
        n0, n1, n2, n3, single, num_classes, block,
    )  # fmt: skip
    total = total_slope(kind, n0, n1, n2, n3, s0, s1, s2, s3, s4)
    for k in range(single, num_classes):
        log_p = (load_class(logits, bias_ptr, k, step, inside, single) - top) - log_total
        weight = 1.0
        if weight_ptr is not None:
            weight = tl.load(weight_ptr + k)
        of_class = slope(kind, log_p, target == k, weight, n0, n1, n2, n3, s0, s1, s2, s3, s4)
        found = tl.where(kept, (of_class - exp(log_p) * total) * grad, 0.0)
        tl.store(output + (k - single) * out_step, found.to(output.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["ignore_index"])
def backward_of_rows(
    input_ptr, target_ptr, bias_ptr, weight_ptr, norm_ptr, output_ptr, grad_ptr,
    of_mean_ptr, of_total_ptr, total_norm_ptr, class_weight_ptr, q_ptr, ranked_ptr, bits_ptr, share_ptr,
    num_pixels, ignore_index,
    kind: tl.constexpr, num_classes: tl.constexpr, each: tl.constexpr, groups: tl.constexpr,
):  # fmt: skip
    """Go over the logits as they lie, so that stores are wide: a thread takes ``each``, of one pixel or two."""
    start = tl.program_id(0).to(tl.int64) * (groups * each)
    first = start // num_classes
    last = (num_pixels - 1 - first).to(tl.int32)
    at = (start - first * num_classes).to(tl.int32) + tl.arange(0, groups) * each
    row = (at.to(tl.uint32) // num_classes).to(tl.int32)
    at -= row * num_classes
    own0, grad0, top0, log0 = _of_pixel(
        grad_ptr, of_mean_ptr, of_total_ptr, total_norm_ptr, class_weight_ptr, q_ptr, ranked_ptr, bits_ptr, share_ptr,
        target_ptr, norm_ptr, first, tl.minimum(row, last), num_pixels, ignore_index, at, num_classes, kind,
    )  # fmt: skip
    at1 = at - num_classes
    own1, grad1, top1, log1 = _of_pixel(
        grad_ptr, of_mean_ptr, of_total_ptr, total_norm_ptr, class_weight_ptr, q_ptr, ranked_ptr, bits_ptr, share_ptr,
        target_ptr, norm_ptr, first, tl.minimum(row + 1, last), num_pixels, ignore_index, at1, num_classes, kind,
    )  # fmt: skip
    left = tl.minimum(num_pixels * tl.cast(num_classes, tl.int64) - start, groups * each).to(tl.int32)
    logit = tl.arange(0, groups)[:, None] * each + tl.arange(0, 4)[None, :]
    for more in tl.static_range(0, each, 4):
        j = more + tl.arange(0, 4)[None, :]
        inside = logit + more < left
        x = tl.load(input_ptr + start + logit + more, mask=inside, other=0.0)
        later = at[:, None] >= num_classes - j
        x = with_bias(x, bias_ptr, at[:, None] + j - tl.where(later, num_classes, 0))
        grad = tl.where(later, grad1[:, None], grad0[:, None])
        own = tl.where(later, own1[:, None], own0[:, None])
        exponent = (x - tl.where(later, top1[:, None], top0[:, None])) * LOG2E
        exponent -= tl.where(later, log1[:, None], log0[:, None])
        found = delta(exponent, own == j, grad)
        tl.store(output_ptr + start + logit + more, found.to(output_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _of_pixel(
    grad_ptr, of_mean_ptr, of_total_ptr, total_norm_ptr, class_weight_ptr, q_ptr, ranked_ptr, bits_ptr, share_ptr,
    target_ptr, norm_ptr, first, pixel, num_pixels, ignore_index, at, num_classes, kind: tl.constexpr,
):  # fmt: skip
    """Return where the own logit of a pixel, from the ``first`` on, is, seen from ``at``, and its gradient's parts."""
    inside = pixel >= 0
    norm_ptr += first
    if grad_ptr is not None:
        grad_ptr += first
    if q_ptr is not None:
        q_ptr += first
    if ranked_ptr is not None:
        ranked_ptr += first
    label, kept = labels(target_ptr + first, pixel, inside, ignore_index, checked=True)
    top = tl.load(norm_ptr + pixel)
    log_total = tl.load(norm_ptr + num_pixels + pixel)
    grad = _grad(
        grad_ptr, of_mean_ptr, of_total_ptr, total_norm_ptr, class_weight_ptr, q_ptr, ranked_ptr, bits_ptr, share_ptr,
        label, pixel, inside, num_classes,
    )  # fmt: skip
    if kind != "cross entropy":
        grad *= tl.load(norm_ptr + 2 * num_pixels + pixel)
    return label.to(tl.int32) - at, of_kept(grad, kept, log_total), top, log_total * LOG2E
