"""The kernels of overlap sums: ``overlap`` says how they go over the logits."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl

from classbalance_losses.kernels.cuda.class_kernels import add_up
from classbalance_losses.kernels.cuda.device import (
    LOG2E,
    address,
    as_class,
    at_most,
    exp,
    exp2,
    labels,
    load_class,
    load_classes,
    of_kept,
    place,
    with_bias,
)
from classbalance_losses.kernels.forms.cuda import as_tensors, slope, sums, total_slope


@triton.jit
def write_parts(
    logits, bias_ptr, q_ptr, partial_ptr, images, image, blocks, pixel, inside, target, kept,
    top, log_total, step, single: tl.constexpr, num_classes: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Write what this program's pixels add to P and to I: to two tables (images, classes, programs of an image)."""
    share = tl.full((block,), 1.0, tl.float32)
    if q_ptr is not None:
        share = tl.load(q_ptr + pixel, mask=inside, other=0.0)
    share = of_kept(share, kept & inside, log_total)
    log_total *= LOG2E
    plane = images.to(tl.int64) * num_classes * blocks
    to = partial_ptr + image * num_classes * blocks + tl.program_id(0) % blocks
    if single:
        x0 = with_bias(tl.zeros((block,), tl.float32), bias_ptr, 0)
        _write_some(x0, x0, x0, x0, 1, target, share, top, log_total, to, blocks, plane)
    left: tl.constexpr = (num_classes - single) % 4
    for k in range(single, num_classes - left, 4):
        x0, x1, x2, x3 = load_classes(logits + (k - single) * step, bias_ptr, k, 4, step, inside)
        at = to + tl.cast(k, tl.int64) * blocks
        _write_some(x0, x1, x2, x3, 4, target - k, share, top, log_total, at, blocks, plane)
    for k in tl.static_range(num_classes - left, num_classes, 4):
        x0, x1, x2, x3 = load_classes(logits + (k - single) * step, bias_ptr, k, left, step, inside)
        at = to + tl.cast(k, tl.int64) * blocks
        _write_some(x0, x1, x2, x3, left, target - k, share, top, log_total, at, blocks, plane)


@triton.jit
def _write_some(
    x0, x1, x2, x3, number: tl.constexpr, target, share, top, log_total, to, blocks, plane
):  # fmt: skip
    """Write the parts of up to four of ``number`` classes."""
    _write_part(x0, target == 0, share, top, log_total, to, plane)
    if number > 1:
        _write_part(x1, target == 1, share, top, log_total, to + blocks, plane)
    if number > 2:
        _write_part(x2, target == 2, share, top, log_total, to + 2 * blocks, plane)
    if number > 3:
        _write_part(x3, target == 3, share, top, log_total, to + 3 * blocks, plane)


@triton.jit
def _write_part(x, own, share, top, log_total, to, plane):
    # In the place of a NaN it is 2: the share is 0 then, or NaN, too.
    found = at_most(exp2((x - top) * LOG2E - log_total), 2.0) * share
    tl.store(to, tl.sum(found, 0))
    tl.store(to + plane, tl.sum(tl.where(own, found, 0.0), 0))


@triton.jit(do_not_specialize=["parts"])
def join_overlap(partial_ptr, probability_ptr, own_ptr, parts, plane, block: tl.constexpr):
    """Add up the parts of one image and class."""
    cell = tl.program_id(0).to(tl.int64)
    partial_ptr += cell * parts
    tl.store(probability_ptr + cell, add_up(partial_ptr, parts, block))
    tl.store(own_ptr + cell, add_up(partial_ptr + plane, parts, block))


@triton.jit(do_not_specialize=["outer_count", "blocks", "ignore_index", "table_step"])
def overlap_backward(
    output_ptr, input_ptr, target_ptr, bias_ptr, weight_ptr, q_ptr, norm_ptr,
    probability_ptr, own_ptr, grad_ptr, other_ptr,
    outer_count, inner_count, blocks, ignore_index, row_size, n0, n1, n2, n3, table_step,
    stride_c, stride_outer, stride_row, stride_pixel,
    out_stride_c, out_stride_outer, out_stride_row, out_stride_pixel,
    in_rows: tl.constexpr, with_slope: tl.constexpr, kind: tl.constexpr, single: tl.constexpr,
    num_classes: tl.constexpr, unrolled: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    r"""Write p_k (a_k − Σ_j p_j a_j) of a_k = q (G_k + [k = y] H_k), and the form's (p_k − [k = y]) dφ/dℓ g.

    G, H and g are the gradients of P, I and φ; with a ``table_step`` of 0, all images share G and H. With
    s = Σ_j p_j G_j + p_y H_y that is p_k (q G_k + dφ/dℓ g − q s) + [k = y] (q p_y H_y − dφ/dℓ g). To it comes the
    gradient of another form, of all probabilities, if it is of a ``kind``.
    """
    image, inner, inside = place(inner_count, blocks, block)
    pixel = image * inner_count + inner
    plane = outer_count.to(tl.int64) * inner_count
    label, kept = labels(target_ptr, pixel, inside, ignore_index, checked=True)
    of_own = as_class(label, num_classes)
    top = tl.load(norm_ptr + pixel, mask=inside, other=0.0)
    log_norm = tl.load(norm_ptr + plane + pixel, mask=inside, other=0.0)
    log_total = log_norm * LOG2E
    logits = address(input_ptr, image, inner, row_size, stride_outer, stride_row, stride_pixel, in_rows)
    output = address(
        output_ptr, image, inner, row_size, out_stride_outer, out_stride_row, out_stride_pixel, in_rows
    )
    step = tl.cast(stride_c, tl.int64)
    out_step = tl.cast(out_stride_c, tl.int64)
    table = image * table_step

    grad = tl.zeros((block,), tl.float32)
    if grad_ptr is not None:
        grad = tl.load(grad_ptr + pixel, mask=inside, other=0.0)
        if with_slope:
            grad *= tl.load(norm_ptr + 2 * plane + pixel, mask=inside, other=0.0)
    q = tl.full((block,), 1.0, tl.float32)
    if q_ptr is not None:
        q = tl.load(q_ptr + pixel, mask=inside, other=0.0).to(tl.float32)
    of_own_class = -grad
    mean = tl.zeros((block,), tl.float32)
    if own_ptr is not None:
        x = load_class(logits, bias_ptr, of_own, step, inside, single)
        mean = _probability(x, top, log_total) * tl.load(own_ptr + table + of_own)
        of_own_class = q * mean - grad
    if probability_ptr is not None:
        probability_ptr += table
        mean = _add_mean(
            mean, probability_ptr, logits, bias_ptr, step, inside, top, log_total, single, num_classes,
            unrolled, block,
        )  # fmt: skip
    rest = grad - q * mean
    target = of_own  # of pixels that do not count nothing is left
    if kind != "":
        of_other = of_kept(tl.load(other_ptr + pixel, mask=inside, other=0.0), kept, log_norm)
        _write_all(
            kind, logits, output, bias_ptr, step, out_step, inside, target, kept, of_other, top, log_norm,
            weight_ptr, n0, n1, n2, n3, probability_ptr, q, rest, of_own_class, single, num_classes, block,
        )  # fmt: skip
    else:
        # Addresses and labels move along: of products by k and comparisons with it, some versions of the compiler keep
        # numbers of 64 bits for every class of a round.
        left: tl.constexpr = num_classes % unrolled
        for start in range(0, num_classes - left, unrolled):
            for first in tl.static_range(0, unrolled, 4):
                k = start + first
                x0, x1, x2, x3 = load_classes(logits, bias_ptr, k, 4, step, inside)
                _write(
                    x0, x1, x2, x3, 4, output, out_step, probability_ptr, k, inside, kept,
                    target, q, rest, of_own_class, top, log_total,
                )  # fmt: skip
                logits += 4 * step
                output += 4 * out_step
                target -= 4
        for k in tl.static_range(num_classes - left + single, num_classes, 4):
            x0, x1, x2, x3 = load_classes(logits, bias_ptr, k, num_classes - k, step, inside)
            _write(
                x0, x1, x2, x3, num_classes - k, output, out_step, probability_ptr, k,
                inside, kept, target - single, q, rest, of_own_class, top, log_total,
            )  # fmt: skip
            logits += 4 * step
            output += 4 * out_step
            target -= 4


@triton.jit
def _probability(x, top, log_total):
    return exp2((x - top) * LOG2E - log_total)


@triton.jit
def _add_mean(
    mean, table_ptr, logits, bias_ptr, step, inside, top, log_total, single: tl.constexpr,
    num_classes: tl.constexpr, unrolled: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Add Σ_k p_k G_k to ``mean``."""
    if single:
        x0 = with_bias(tl.zeros((block,), tl.float32), bias_ptr, 0)
        mean += _probability(x0, top, log_total) * tl.load(table_ptr)
    left: tl.constexpr = num_classes % unrolled
    for start in range(0, num_classes - left, unrolled):
        for first in tl.static_range(0, unrolled, 4):
            k = start + first
            x0, x1, x2, x3 = load_classes(logits, bias_ptr, k, 4, step, inside)
            mean = _add_some(mean, x0, x1, x2, x3, 4, table_ptr + k, top, log_total)
            logits += 4 * step
    for k in tl.static_range(num_classes - left + single, num_classes, 4):
        x0, x1, x2, x3 = load_classes(logits, bias_ptr, k, num_classes - k, step, inside)
        mean = _add_some(mean, x0, x1, x2, x3, num_classes - k, table_ptr + k, top, log_total)
        logits += 4 * step
    return mean


@triton.jit
def _add_some(mean, x0, x1, x2, x3, number: tl.constexpr, table_ptr, top, log_total):
    mean += _probability(x0, top, log_total) * tl.load(table_ptr)
    if number > 1:
        mean += _probability(x1, top, log_total) * tl.load(table_ptr + 1)
    if number > 2:
        mean += _probability(x2, top, log_total) * tl.load(table_ptr + 2)
    if number > 3:
        mean += _probability(x3, top, log_total) * tl.load(table_ptr + 3)
    return mean


@triton.jit
def _write(
    x0, x1, x2, x3, number: tl.constexpr, output, step, table_ptr, k, inside, kept,
    target, q, rest, of_own_class, top, log_total,
):  # fmt: skip
    """Write the gradient by the logits of up to four of ``number`` classes from ``k`` on."""
    _write_class(x0, output, table_ptr, k, inside, kept, target == 0, q, rest, of_own_class, top, log_total)
    if number > 1:
        output += step
        _write_class(
            x1, output, table_ptr, k + 1, inside, kept, target == 1, q, rest, of_own_class, top, log_total
        )
    if number > 2:
        output += step
        _write_class(
            x2, output, table_ptr, k + 2, inside, kept, target == 2, q, rest, of_own_class, top, log_total
        )
    if number > 3:
        output += step
        _write_class(
            x3, output, table_ptr, k + 3, inside, kept, target == 3, q, rest, of_own_class, top, log_total
        )


@triton.jit
def _write_class(x, output, table_ptr, k, inside, kept, own, q, rest, of_own_class, top, log_total):
    if table_ptr is not None:
        rest += q * tl.load(table_ptr + k)
    found = _probability(x, top, log_total) * rest + tl.where(own, of_own_class, 0.0)
    tl.store(output, tl.where(kept, found, 0.0).to(output.dtype.element_ty), mask=inside)


@triton.jit
def _write_all(
    kind: tl.constexpr, logits, output, bias_ptr, step, out_step, inside, target, kept, grad, top, log_norm,
    weight_ptr, n0, n1, n2, n3, table_ptr, q, rest, of_own_class,
    single: tl.constexpr, num_classes, block: tl.constexpr,
):  # fmt: skip
    """Write the gradient with that of a form of all classes, (u_k - p_k Σ_j u_j) ``grad``."""
    n0, n1, n2, n3 = as_tensors(n0, n1, n2, n3, block)
    s0, s1, s2, s3, s4 = sums(
        kind, True, logits, bias_ptr, step, inside, target, top, log_norm, weight_ptr,
        n0, n1, n2, n3, single, num_classes, block,
    )  # fmt: skip
    total = total_slope(kind, n0, n1, n2, n3, s0, s1, s2, s3, s4)
    for k in range(single, num_classes):
        log_p = (load_class(logits, bias_ptr, k, step, inside, single) - top) - log_norm
        weight = 1.0
        if weight_ptr is not None:
            weight = tl.load(weight_ptr + k)
        of_form = slope(kind, log_p, target == k, weight, n0, n1, n2, n3, s0, s1, s2, s3, s4)
        every = rest - total * grad
        if table_ptr is not None:
            every += q * tl.load(table_ptr + k)
        found = exp(log_p) * every + of_form * grad + tl.where(target == k, of_own_class, 0.0)
        found = tl.where(kept, found, 0.0).to(output.dtype.element_ty)
        tl.store(output + (k - single) * out_step, found, mask=inside)
