"""The pixels of a call, and what a loss asks of them: values of a form, sums over classes, and a mean.

A loss is a function of class sums. Two primitives carry it: a pass over the logits that gives each pixel's value of a
form, and sums of such a map over the pixels of each class. All that is left is arithmetic on C numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from classbalance_losses._dispatch import backend_for
from classbalance_losses._distributed import all_reduce_sum, joined_value, resolve
from classbalance_losses._options import Common, completed
from classbalance_losses._validate import check_call, check_target_range
from classbalance_losses.kernels import reference
from classbalance_losses.kernels.call import Hard, Labels, WeightedSums, accumulation_dtype
from classbalance_losses.kernels.forms.reference import CrossEntropy, Form
from classbalance_losses.kernels.plain import can_read_values, is_constant
from classbalance_losses.kernels.reference import indices, kept_weight, members, per_pixel, scaled
from classbalance_losses.ops.batch_sums import BatchSums
from classbalance_losses.ops.logits import logits_for
from classbalance_losses.ops.mining import hardest
from classbalance_losses.ops.reduction import reduce_total


class Sums(NamedTuple):
    """Sums over the pixels of each class."""

    number: Tensor
    """n_c or, over H, Σ h_i, of all ranks (C,); no gradient."""
    value: Tensor
    """Σ h_i q_i φ_i of this rank (C,), with its gradient."""
    values: Tensor
    """φ (N, *)."""
    hard: Hard | None


class Batch:
    """Logits and labels of a call, checked, and the backend that works on them."""

    def __init__(
        self,
        input: Tensor,
        target: Tensor,
        pixel_weight: Tensor | None,
        common: Common,
        *,
        learned: Tensor | None = None,
        skip_weightless: bool = False,
    ) -> None:
        """Check the arguments of a call, and choose the backend.

        ``learned`` is a weight that may have a gradient, as ``pixel_weight`` may. With ``skip_weightless`` pixels of
        weight 0 do not count.
        """
        options = completed(common)
        check_call(input, target, pixel_weight, **options)
        self.dtype = accumulation_dtype(input.dtype)
        self.reduction, self.process_group = options["reduction"], options["process_group"]
        ignore_index = options["ignore_index"]
        if skip_weightless and pixel_weight is not None:
            target = torch.where(pixel_weight != 0, target.long(), ignore_index)
        self.logits = logits_for(input, target, options["upsample"], options["align_corners"])
        self.labels = Labels(target, input.shape[1], ignore_index)
        self.pixel_weight = None if pixel_weight is None else pixel_weight.to(self.dtype)
        self._loss: Tensor | None = None
        constant = all(is_constant(weight) for weight in (pixel_weight, learned) if weight is not None)
        self.backend = backend_for(self.logits, self.labels, pixel_weight, constant=constant)
        self._check_labels()

    def _check_labels(self) -> None:
        """Check that each label is a class or ignored: values are read on the CPU; kernels for CUDA assert it."""
        target, num_classes, ignore_index = self.labels
        if target.device.type == "cuda" and self.backend is not reference:
            return
        count = getattr(self.backend, "labels_outside", None)
        if count is None or not can_read_values(target) or count(target, num_classes, ignore_index):
            check_target_range(target, num_classes, ignore_index)

    def values(self, form: Form) -> Tensor:
        """Return φ of each pixel (N, *), 0 where its label does not count."""
        return self.backend.pixel_values(self.logits, self.labels, form)

    def cross_entropy(self) -> Tensor:
        """Return ℓ of each pixel (N, *), which is computed once."""
        if self._loss is None:
            self._loss = self.values(CrossEntropy())
        return self._loss

    def cross_entropy_and_error(self) -> tuple[Tensor, Tensor]:
        r"""Return the cross-entropy, and the constant :math:`\lVert p_i - e_{y_i} \rVert^2` (N, *)."""
        return self.backend.cross_entropy_and_error(self.logits, self.labels)

    def hardest(self, loss: Tensor, *, fraction: float, min_kept: int, scope: str) -> Hard:
        """Return H, the pixels with the largest losses of the batch, on all ranks together, or of each image."""
        return hardest(
            loss,
            self.labels,
            fraction=fraction,
            min_kept=min_kept,
            scope=scope,
            process_group=self.process_group,
            backend=self.backend,
        )

    def class_sums(self, values: Tensor, hard: Hard | None = None) -> Sums:
        """Sum a map over the pixels of each class, or over those of H."""
        rows = 1 if hard is None else hard.bits.shape[0]
        sums = self.backend.class_sums(self.labels, values, None, self.pixel_weight, rows=rows, hard=hard)
        number, value = (_over_rows(table) for table in (sums.number, sums.value))
        return Sums(all_reduce_sum(number, self.process_group), value, values, hard)

    def statistics(self) -> BatchSums:
        """Return what estimators of class weights are given."""
        return BatchSums(self.cross_entropy(), self.labels, self.backend, self.process_group)

    def weighted(self, sums: Sums, coefficient: Tensor, normalizer: Tensor) -> Tensor:
        r"""Return :math:`\frac{1}{Z} \sum_c a_c S_c`; the sum, or the terms :math:`h_i a_{y_i} q_i \varphi_i`."""
        if self.reduction != "none":
            total = (coefficient * sums.value).sum()
            return self._joined(total, normalizer)
        keep = indices(self.labels)[1]
        share = None
        if sums.hard is not None:
            keep, tied = members(sums.hard, keep)
            rows = sums.hard.share.view(-1, *[1] * (keep.ndim - 1))
            share = torch.where(tied, rows, 1)
        return self._terms(sums.values, coefficient, keep, share)

    def mean(self, values: Tensor, weight: Tensor | None = None, over: Tensor | None = None) -> Tensor:
        r"""Return :math:`\sum_i w_{y_i} q_i \varphi_i / \sum_i w'_{y_i}`; the sum above, or the terms.

        Args:
            values: φ (N, *).
            weight: w (C,), or ``None`` for 1.
            over: w' (C,), or ``None`` for 1: the number of pixels that count.
        """
        if self.reduction == "none":
            return self._terms(values, weight, indices(self.labels)[1])
        sums = self._weighted_sums(values, weight, over)
        if resolve(self.process_group) is None:
            return sums.mean if self.reduction == "mean" else sums.total
        if over is None or is_constant(over):
            return self._joined(sums.total, all_reduce_sum(sums.norm, self.process_group))
        # Σ_c w_c n_c, of all ranks' n_c: on each rank the derivative is the joined sum's
        number = self.backend.class_sums(self.labels).number[0]
        return self._joined(sums.total, (over * all_reduce_sum(number, self.process_group)).sum())

    def sum(self, values: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the sum that `mean` divides; or the terms."""
        if self.reduction == "none":
            return self._terms(values, weight, indices(self.labels)[1])
        return joined_value(self._weighted_sums(values, weight, None).total, self.process_group)

    def _weighted_sums(self, values: Tensor, weight: Tensor | None, over: Tensor | None) -> WeightedSums:
        return self.backend.weighted_sums(values, self.labels, weight, over, self.pixel_weight)

    def _terms(
        self, values: Tensor, weight: Tensor | None, keep: Tensor, share: Tensor | None = None
    ) -> Tensor:
        target = indices(self.labels)[0]
        own = None if weight is None else per_pixel(weight.to(values.dtype), target, keep)
        return scaled(torch.where(keep, values, 0), own, share, kept_weight(self.pixel_weight, keep))

    def _joined(self, total: Tensor, normalizer: Tensor) -> Tensor:
        return reduce_total(
            total, reduction=self.reduction, normalizer=normalizer, process_group=self.process_group
        )


def _over_rows(table: Tensor | None) -> Tensor:
    assert table is not None
    return table.squeeze(0) if table.shape[0] == 1 else table.sum(0)  # a view, whose gradient is one
