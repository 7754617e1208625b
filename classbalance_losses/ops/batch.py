"""What a loss asks of the pixels of a call: sums over classes, and a mean.

A loss is a function of class sums. Two primitives carry it: a pass over the logits that gives each pixel's value of a
form (`pixels`), or sums of them or of probabilities, and sums of such a map over the pixels of each class. All that is
left is arithmetic on C numbers.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from classbalance_losses._distributed import all_reduce_counts, all_reduce_sum, joined_value, resolve
from classbalance_losses.kernels.call import ClassSums, Hard, Share, WeightedSums, replaced
from classbalance_losses.kernels.factors import indices, kept_weight, members, per_pixel, scaled
from classbalance_losses.kernels.forms.reference import Adjusted, AnyForm, CrossEntropy, Mixed
from classbalance_losses.kernels.plain import is_constant
from classbalance_losses.kernels.reference import over_classes
from classbalance_losses.ops.batch_sums import BatchSums
from classbalance_losses.ops.mining import hardest
from classbalance_losses.ops.pixels import Pixels
from classbalance_losses.ops.reduction import reduce_total
from classbalance_losses.ops.sums import Sums, over_rows


class Batch(Pixels):
    """The pixels of a call, and sums and means over their classes."""

    def table(self, form: AnyForm, *, with_error: bool = False) -> ClassSums | None:
        r"""Return n, :math:`\sum q_i \varphi_i` and :math:`\sum q_i^2 e_i` of each class of this rank, (1, C).

        ``None`` where a map of φ is there or needed, or no pass sums on its way: see `class_sums` and `squared_sums`.
        """
        is_loss, form = isinstance(form, CrossEntropy), self._fused(form)
        sums_of_pass = self._pass("pixel_sums", form)
        if sums_of_pass is None or (is_loss and self._table is not None):
            return None if sums_of_pass is None else self._table
        table: ClassSums = sums_of_pass(
            self.logits, self.labels, form, self.pixel_weight, with_error=with_error
        )
        if is_loss:
            self._table = table
        return table

    def _pass(self, name: str, form: AnyForm) -> Any:
        """Return the backend's pass that sums on its way, if it has one, where no other term needs a map of φ."""
        has_map = isinstance(form, CrossEntropy) and "loss" in self._found
        needs_map = self.reduction == "none" or self._needs is not None or has_map
        if needs_map or self.groups > 1 or isinstance(form, Mixed):
            return None
        return getattr(self.backend, name, None)

    def hardest(self, loss: Tensor, *, fraction: float, min_kept: int, scope: str) -> Hard:
        """Return H, the pixels with the largest losses of the batch, on all ranks together, or of each image."""
        rows = self.num_images if scope == "image" and loss.numel() else 1
        return hardest(
            loss,
            self.labels,
            fraction=fraction,
            min_kept=min_kept,
            rows=rows,
            process_group=self.process_group if scope == "batch" else None,
            backend=self._fast,
        )

    def mined_sums(self, form: AnyForm, *, fraction: float, min_kept: int, scope: str) -> Sums:
        """Sum a form over the pixels of each class in H, those whose values are the largest, see `hardest`."""
        choose = partial(self.hardest, fraction=fraction, min_kept=min_kept, scope=scope)
        fused = self._fused(form)
        found = self._hardest_sums(fused, Share(fraction, min_kept), scope)
        sums_of_pass = self._pass("mined_sums", fused)
        if found is None and sums_of_pass is not None:
            given = (self.logits, self.labels, fused, self.pixel_weight, choose)
            found = sums_of_pass(*given, by_image=scope == "image")
        if found is None:
            values = self.values(form)
            return self.class_sums(values, choose(values))
        sums, hard = found
        number, value = (over_rows(table) for table in (sums.number, sums.value))
        return Sums(all_reduce_counts(number, self.dtype, self.process_group), value, None, hard)

    def _hardest_sums(self, form: AnyForm, share: Share, scope: str) -> tuple[ClassSums, None] | None:
        """Return the sums over an H of all pixels of this process, where the backend needs no map to choose it."""
        is_of_all = scope == "batch" and resolve(self.process_group) is None
        sums_of_pass = self._pass("hardest_sums", form) if is_of_all else None
        if sums_of_pass is None:
            return None
        sums: ClassSums | None = sums_of_pass(self.logits, self.labels, form, self.pixel_weight, share)
        return None if sums is None else (sums, None)

    def class_sums(self, values: Tensor, hard: Hard | None = None) -> Sums:
        """Sum a map over the pixels of each class, or over those of H."""
        rows = 1 if hard is None else hard.bits.shape[0]
        sums = self.backend.class_sums(self.classes, values, None, self.entry_weight, rows=rows, hard=hard)
        number, value = (over_rows(table) for table in (sums.number, sums.value))
        return Sums(all_reduce_counts(number, self.dtype, self.process_group), value, values, hard)

    def number(self) -> Tensor:
        """Return n_c of all ranks (C,), a constant."""
        number = self.backend.class_sums(self.classes).number[0]
        return all_reduce_counts(number, self.dtype, self.process_group)

    def squared_sums(self) -> tuple[Tensor, Tensor]:
        r"""Return n_c, and :math:`\sum q_i^2 \lVert p_i - e_{y_i} \rVert^2`, of all ranks (C,), constants."""
        sums = self.table(CrossEntropy(), with_error=True)
        if sums is None or sums.squared is None:
            error = self.cross_entropy_and_error()[1]
            sums = self.backend.class_sums(self.classes, None, error, self.entry_weight)
        assert sums.squared is not None
        number = all_reduce_counts(sums.number[0], self.dtype, self.process_group)
        return number, all_reduce_sum(sums.squared[0], self.process_group)

    def total_loss(self) -> Tensor:
        r"""Return :math:`\sum q_i \ell_i` of this rank, a constant."""
        table = self.table(CrossEntropy())
        if table is None:
            return self._weighted_sums(self.cross_entropy(), None, None).total.detach()
        assert table.value is not None
        return table.value.detach().sum()

    def statistics(self) -> BatchSums:
        """Return what estimators of class weights are given."""
        size = (self.num_images, self.groups, *self.labels.target.shape[1:])
        labels = replaced(self.classes, target=self.classes.target.reshape(size))
        return BatchSums(self.cross_entropy().reshape(size), labels, self.backend, self.process_group)

    def mean_of(self, form: AnyForm, weight: Tensor | None = None, over: Tensor | None = None) -> Tensor:
        """Return the mean of a form's values, see `mean`."""
        table = self.table(form)
        if table is None:
            sums = self._weighted_pass(form, weight, over)
            return self.mean(self.values(form), weight, over) if sums is None else self._mean(sums, over)
        assert table.value is not None
        return self._mean(over_classes(table.number[0], table.value[0], weight, over), over)

    def adjusted_mean(self, bias: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits plus constants (G, C'), in the pass of a sum's terms where it can."""
        needs = self._needs
        if needs is not None and self.groups == 1 and self.shares_forms and self._joins(needs):
            return self.mean_of(Adjusted(bias[0].to(self.dtype)))
        return self.biased(bias).mean_of(CrossEntropy())

    def sum_of(self, form: AnyForm, weight: Tensor | None = None) -> Tensor:
        """Return the sum that `mean_of` divides; or the terms."""
        return self.reduced("sum" if self.reduction == "mean" else self.reduction).mean_of(form, weight)

    def weighted(self, sums: Sums, coefficient: Tensor, normalizer: Tensor) -> Tensor:
        r"""Return :math:`\frac{1}{Z} \sum_c a_c S_c`; the sum, or the terms :math:`h_i a_{y_i} q_i \varphi_i`."""
        if self.reduction != "none":
            total = (coefficient * sums.value).sum()
            return self._joined(total, normalizer)
        assert sums.values is not None
        keep = indices(self.classes)[1]
        share = None
        if sums.hard is not None:
            keep, tied = members(sums.hard, keep)
            rows = sums.hard.share.view(-1, *[1] * (keep.ndim - 1))
            share = torch.where(tied.reshape(len(rows), -1), rows.view(-1, 1), 1).view(keep.shape)
        return self._terms(sums.values, coefficient, keep, share)

    def mean(self, values: Tensor, weight: Tensor | None = None, over: Tensor | None = None) -> Tensor:
        r"""Return :math:`\sum_i w_{y_i} q_i \varphi_i / \sum_i w'_{y_i}`; the sum above, or the terms.

        Args:
            values: φ (M, *).
            weight: w (C,), or ``None`` for 1.
            over: w' (C,), or ``None`` for 1: the number of pixels that count.
        """
        if self.reduction == "none":
            return self._terms(values, weight, indices(self.classes)[1])
        return self._mean(self._weighted_sums(values, weight, over), over)

    def _mean(self, sums: WeightedSums, over: Tensor | None) -> Tensor:
        if resolve(self.process_group) is None:
            return sums.mean if self.reduction == "mean" else sums.total
        if self.reduction == "sum":
            return joined_value(sums.total, self.process_group)
        if over is None or is_constant(over):
            return self._joined(sums.total, all_reduce_sum(sums.norm, self.process_group))
        # Σ_c w_c n_c, of all ranks' n_c: on each rank the derivative is the joined sum's
        return self._joined(sums.total, (over * self.number()).sum())

    def _weighted_pass(
        self, form: AnyForm, weight: Tensor | None, over: Tensor | None
    ) -> WeightedSums | None:
        fused = self._fused(form)
        sums_of_pass = self._pass("weighted_pass", fused)
        if sums_of_pass is None:
            return None
        found: WeightedSums | None = sums_of_pass(
            self.logits, self.labels, fused, weight, over, self.pixel_weight
        )
        return found

    def _weighted_sums(self, values: Tensor, weight: Tensor | None, over: Tensor | None) -> WeightedSums:
        return self.backend.weighted_sums(values, self.classes, weight, over, self.entry_weight)

    def _terms(
        self, values: Tensor, weight: Tensor | None, keep: Tensor, share: Tensor | None = None
    ) -> Tensor:
        return self._entries(values, weight, keep, share).reshape(self._shape)

    def _entries(self, values: Tensor, weight: Tensor | None, keep: Tensor, share: Tensor | None) -> Tensor:
        target = indices(self.classes)[0]
        own = None if weight is None else per_pixel(weight.to(values.dtype), target, keep)
        return scaled(torch.where(keep, values, 0), own, share, kept_weight(self.entry_weight, keep))

    def _joined(self, total: Tensor, normalizer: Tensor) -> Tensor:
        return reduce_total(
            total, reduction=self.reduction, normalizer=normalizer, process_group=self.process_group
        )
