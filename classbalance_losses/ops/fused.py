"""Stages 3 to 5 in few kernels on CUDA: mining, weights of classes and pixels, and the mean or sum."""

from __future__ import annotations

import torch
from torch import Tensor

from classbalance_losses._distributed import ProcessGroup, all_reduce_sum, resolve
from classbalance_losses.ops.counts import has_kernels
from classbalance_losses.ops.mining import kth_by_kernel, rows_of
from classbalance_losses.ops.reduction import reduce_total
from classbalance_losses.ops.shape import focal_modulated
from classbalance_losses.ops.weights import kept_weight, per_pixel, scaled


def fused_mean(
    loss: Tensor,
    target: Tensor,
    keep: Tensor,
    class_weight: Tensor | None,
    pixel_weight: Tensor | None,
    *,
    gamma: float = 0.0,
    by_weight: bool = False,
    reduction: str,
    process_group: ProcessGroup,
) -> Tensor | None:
    r"""Return :math:`\frac{1}{Z} \sum_i w_{y_i} q_i f(\ell_i)`, or ``None`` where the kernels cannot be used.

    Z is the sum of the weights, or the number of pixels; "sum" does not divide. f is `focal_modulated`.
    """
    if reduction == "none" or not has_kernels(loss, target, keep, class_weight, pixel_weight):
        return None
    from classbalance_losses.kernels.triton_mean import weighted_mean  # noqa: PLC0415 - an optional dependency

    weight = None if class_weight is None else class_weight.to(loss.dtype)
    pixels = None if pixel_weight is None else pixel_weight.to(loss.dtype)

    def plain(value: Tensor) -> tuple[Tensor, Tensor]:
        own = None if weight is None else per_pixel(weight, target, keep, loss.dtype)
        shaped = focal_modulated(torch.where(keep, value, 0), gamma)
        total = scaled(shaped, own, kept_weight(pixels, keep, loss.dtype)).sum()
        return reduce_total(total, reduction="mean", normalizer=norm), total

    mean, total, norm = weighted_mean(
        loss, target, keep, weight, pixels, gamma=gamma, by_weight=by_weight, plain=plain
    )
    if resolve(process_group) is None:
        return mean if reduction == "mean" else total
    norm = all_reduce_sum(norm, process_group)
    return reduce_total(total, reduction=reduction, normalizer=norm, process_group=process_group)


def hard_class_sums(
    loss: Tensor,
    target: Tensor,
    keep: Tensor,
    num_classes: int,
    pixel_weight: Tensor | None,
    *,
    fraction: float,
    min_kept: int,
    scope: str,
    process_group: ProcessGroup,
) -> tuple[Tensor, Tensor] | None:
    r"""Return :math:`f_c = \sum h_i` and :math:`S_c = \sum h_i q_i \ell_i` over H's pixels of each class, (C,).

    The sums are this process's, H's threshold all ranks' (see `hardest`). ``None`` where the kernels cannot be used.
    """
    rows = rows_of(loss, scope)
    if not has_kernels(loss, target, keep, pixel_weight):
        return None
    found = kth_by_kernel(loss, keep, fraction, min_kept, scope, process_group)
    if found is None:
        return None
    from classbalance_losses.kernels.triton_classes import Hard, class_sums  # noqa: PLC0415 - an optional dependency

    weight = None if pixel_weight is None else pixel_weight.to(loss.dtype)
    hard = Hard(loss.detach(), *found)
    sums = class_sums(target, keep, num_classes, loss, None, weight, rows=rows[0], hard=hard)
    if rows[0] == 1:
        return sums.number.squeeze(0), sums.value.squeeze(0)  # a view, whose gradient is one
    return sums.number.sum(0), sums.value.sum(0)
