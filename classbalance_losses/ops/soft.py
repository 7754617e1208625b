"""Soft labels: each pixel is an entry for each class, whose weight is the class's share of the label.

With indices one entry of a pixel has the share 1, so every sum over entries is what it is over pixels.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from classbalance_losses._dispatch import whole_labels
from classbalance_losses._distributed import all_reduce_sum
from classbalance_losses._options import Common
from classbalance_losses.kernels import reference
from classbalance_losses.kernels.call import NARROW, ClassSums, Hard, Labels, replaced
from classbalance_losses.kernels.factors import class_rows, kept_weight, scaled, shares_of, sum_pixels
from classbalance_losses.kernels.forms.reference import AnyForm, CrossEntropy, Focal, Smoothed, of_all_classes
from classbalance_losses.kernels.plain import is_constant
from classbalance_losses.kernels.reference import over_classes
from classbalance_losses.ops.batch import Batch
from classbalance_losses.ops.batch_sums import BatchSums
from classbalance_losses.ops.sums import ImageSums, Needs, Sums, block_diagonal
from classbalance_losses.ops.tasks import Reading, grouped


def batch_for(
    input: Tensor,
    target: Tensor,
    pixel_weight: Tensor | None,
    common: Common,
    *,
    learned: tuple[object, ...] = (),
    needs: Needs | None = None,
) -> Batch:
    """Return the batch of a call, see `Batch`, by the kind of its labels."""
    kind = SoftBatch if isinstance(target, Tensor) and target.is_floating_point() else Batch
    if kind is SoftBatch and _is_of_own(input, common):
        label = whole_labels(target)
        if label is not None:  # a mask of floats, as torch's binary cross-entropy asks for
            kind, target, common = Batch, label, {**common, "ignore_index": NARROW}
    return kind(input, target, pixel_weight, common, learned=learned, needs=needs)


def _is_of_own(input: object, common: Common) -> bool:
    """Whether labels are absent or present, each by itself, of a call without what has to be refused."""
    has_logits = isinstance(input, Tensor) and input.is_floating_point()
    is_usual = has_logits and isinstance(common.get("ignore_index", 0), int)
    return is_usual and common.get("task", "multiclass") != "multiclass"


class SoftBatch(Batch):
    """A batch whose labels are shares t (M, C', *): its maps and class indices are of entries (M, C', *)."""

    soft: Tensor

    _names = (*Batch._names, "_keep", "_entry_weight")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.backend = reference  # of maps of entries
        self._needs = None  # a form's values are of entries: no pass has several

    def _set(self, reading: Reading, dtype: torch.dtype) -> None:
        super()._set(reading, dtype)
        assert reading.soft is not None
        self.soft, self._keep = reading.soft, self.labels.target == 0
        self.pixel_weight = kept_weight(self.pixel_weight, self._keep)
        self._entry_weight: Tensor | None = None

    def _make_classes(self) -> Labels:
        (_, number, ignored), shape = self.labels, self.soft.shape
        entry = torch.arange(number, dtype=torch.int64, device=self.soft.device)
        entry = entry.view(-1, *[1] * (len(shape) - 2)).expand(shape)
        return grouped(Labels(torch.where(self.soft != 0, entry, ignored), number, ignored), self.groups)

    @property
    def entry_weight(self) -> Tensor:
        """Q t of each entry (M, C', *)."""
        if self._entry_weight is None:
            q = self.pixel_weight
            self._entry_weight = self.soft if q is None else self.soft * q.unsqueeze(1)
        return self._entry_weight

    def without_weightless(self) -> Self:
        """Return the same where pixels of weight 0 do not count."""
        if self.pixel_weight is None:
            return self
        kept, other = self.pixel_weight != 0, self._copied()
        other._keep, other.soft = self._keep & kept, torch.where(kept.unsqueeze(1), self.soft, 0)
        other.labels = replaced(self.labels, target=torch.where(kept, self.labels.target, -1))
        other._classes = other._entry_weight = other._table = None
        return other

    def cross_entropy(self, *, ranked: bool = False) -> Tensor:
        """Return ℓ of each entry (M, C', *)."""
        return self.values(CrossEntropy(ranked))

    def values(self, form: AnyForm) -> Tensor:
        """Return φ of each entry (M, C', *)."""
        return of_all_classes(form, self.logits.full_size(), self._keep)

    def share(self, c: int, weight: Tensor | None) -> Tensor:
        """Return q t of class c of each row, (M, *)."""
        return (self.soft if weight is None else weight)[:, c]

    def _rows(self, values: Tensor) -> Tensor:
        """Return the sums over the pixels that count of each row and class."""
        return sum_pixels(torch.where(self._keep.unsqueeze(1), values, 0))

    def image_sums(self) -> ImageSums:
        """Return the sums of probabilities and labels over each image's pixels."""
        prob, weight, q = self.probability(), self.entry_weight, self.pixel_weight
        own = None if q is None else q.unsqueeze(1)
        sums = (scaled(prob, own), scaled(prob, weight), weight)
        return self._by_image(*map(self._rows, sums), self._rows((self.soft != 0).long()))

    def hardest(self, loss: Tensor, **options: Any) -> Hard:
        """Return H, of pixels by the loss of all their shares."""
        return super().hardest(scaled(loss, self.soft).sum(1), **options)

    def class_sums(self, values: Tensor, hard: Hard | None = None) -> Sums:
        """Sum a map over the entries of each class, or over those of H's pixels; the number is the sum of shares."""
        share = None if hard is None else shares_of(hard, self._keep).unsqueeze(1)
        number = self._by_class(scaled(self.soft.detach(), share))
        value = self._by_class(scaled(values, self.entry_weight, share))
        return Sums(all_reduce_sum(number, self.process_group), value, values, self._of_entries(hard))

    def mined_sums(self, form: AnyForm, **options: Any) -> Sums:
        """Sum a form over H's pixels, see `Batch.mined_sums`."""
        sums, hard = self._sums(form, choose=partial(super().hardest, **options))
        assert sums.value is not None
        number, value = (self._of_all_rows(table) for table in (sums.number, sums.value))
        values = self.values(form) if self.reduction == "none" else None
        return Sums(all_reduce_sum(number, self.process_group), value, values, self._of_entries(hard))

    def _of_entries(self, hard: Hard | None) -> Hard | None:
        """Return H as `members` takes it for entries: each is ranked as its pixel is."""
        return None if hard is None else replaced(hard, ranked=hard.ranked.unsqueeze(1).expand_as(self.soft))

    def _sums(self, form: AnyForm, **asked: Any) -> tuple[ClassSums, Hard | None]:
        """Return sums of each row and class, by the backend if it has such a pass of the form."""
        # Single pixels are one row to a fast backend.
        has_rows = self.groups == 1 or self.soft.ndim > 2
        has_pass = isinstance(form, (CrossEntropy, Focal)) and has_rows
        backend = self._fast if has_pass else reference
        return backend.soft_sums(self.logits, self.labels, self.soft, form, self.pixel_weight, **asked)

    def table(self, form: AnyForm, *, with_error: bool = False) -> ClassSums:
        r"""Return :math:`\sum t`, :math:`\sum q t \varphi` and, if asked, :math:`\sum (q t)^2 e` of classes, (1, C)."""
        is_loss, table = isinstance(form, CrossEntropy), self._table
        if table is None or not is_loss or (with_error and table.squared is None):
            sums, _ = self._sums(form, with_error=with_error)
            table = ClassSums(*(None if of is None else self._of_all_rows(of)[None] for of in sums))  # type: ignore[arg-type]
            self._table = table if is_loss else self._table
        return table

    def _by_class(self, entries: Tensor) -> Tensor:
        """Return the sums over the entries of each class: an axis of its own, so that nothing is scattered."""
        return self._of_all_rows(sum_pixels(entries))

    def _of_all_rows(self, table: Tensor) -> Tensor:
        """Return the sums (C,) of those of rows, (M, C')."""
        rows, classes = table.shape[0] // self.groups, self.groups * table.shape[1]
        return table.reshape(rows, classes).sum(0)

    def number(self) -> Tensor:
        """Return the sum of shares of each class, of all ranks (C,)."""
        return all_reduce_sum(self._number(), self.process_group)

    def _number(self) -> Tensor:
        return self._by_class(self.soft.detach()) if self._table is None else self._table.number[0]

    def error_sums(self, weight: Tensor | None, *, squared: bool) -> Tensor:
        r"""Return :math:`\sum_i q_i t_{ia} (p_{ib} - [a = b])`, or of its square without q, of all ranks."""
        share = (self.soft if squared else self.entry_weight).detach()
        prob, blocks = self.probability().detach(), []
        one = torch.eye(share.shape[1], dtype=prob.dtype, device=prob.device)
        for g in range(self.groups):
            p, t = (class_rows(of[g :: self.groups]) for of in (prob, share))
            error = p.unsqueeze(1) - one.view(1, *one.shape, 1)  # (N, a, b, P)
            error = error.square() if squared else error
            blocks.append((error * t.unsqueeze(2)).sum((0, 3)))
        return all_reduce_sum(block_diagonal(blocks), self.process_group)

    def statistics(self) -> BatchSums:
        """Return what estimators of class weights are given: pixels are counted by their shares, rounded."""
        size = (self.num_images, self.groups * self.soft.shape[1], *self.soft.shape[2:])
        labels = replaced(self.classes, target=self.classes.target.reshape(size))
        loss, share = (of.reshape(size) for of in (self.cross_entropy(), self.soft))
        return BatchSums(loss, labels, self.backend, self.process_group, share=share.detach())

    def mean_of(self, form: AnyForm, weight: Tensor | None = None, over: Tensor | None = None) -> Tensor:
        r"""Return the weighted sum over entries by that of ``over``'s shares, or of pixels; the sum, or the terms."""
        share = self.soft
        if isinstance(form, Smoothed):
            share = (1 - form.label_smoothing) * share + form.label_smoothing / share.shape[1]
            share, weight = torch.where(self._keep.unsqueeze(1), share, 0), form.weight
        elif self.reduction != "none":
            (number,), (value,), _ = self.table(form)  # type: ignore[misc]
            return self._joined(over_classes(number, value, weight, None).total, self._norm(over))
        elif not isinstance(form, CrossEntropy):
            return self._terms(self.values(form), weight, share != 0)
        if weight is not None and weight.numel() != share.shape[1]:
            of_row = weight.view(self.groups, -1).repeat(share.shape[0] // self.groups, 1)
            share, weight = share * of_row.view(*share.shape[:2], *[1] * (share.ndim - 2)), None
        return self._mean_of_pixels(self._fast.soft_cross_entropy(self.logits, share, weight), over)

    def _mean_of_pixels(self, values: Tensor, over: Tensor | None) -> Tensor:
        terms = scaled(values, self.pixel_weight)
        if self.reduction == "none":
            return terms.reshape(self._shape)
        return self._joined(terms.sum(), self._norm(over))

    def _norm(self, over: Tensor | None) -> Tensor:
        if over is None:
            return all_reduce_sum(self._keep.sum().to(self.dtype), self.process_group)
        if is_constant(over):  # one number, as of class indices
            return all_reduce_sum((over * self._number()).sum(), self.process_group)
        return (over * self.number()).sum()

    def _terms(
        self, values: Tensor, weight: Tensor | None, keep: Tensor, share: Tensor | None = None
    ) -> Tensor:
        return self._entries(values, weight, keep, share).sum(1).reshape(self._shape)
