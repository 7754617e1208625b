"""The pixels of a call, and what a pass over their logits gives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Self

from classbalance_losses._dispatch import backend_for
from classbalance_losses._distributed import all_reduce_sum
from classbalance_losses._options import Common, completed
from classbalance_losses._validate import check_target_range
from classbalance_losses._validate_classes import class_vector_of_call
from classbalance_losses._validate_tasks import check_call
from classbalance_losses.kernels import reference
from classbalance_losses.kernels.call import ClassSums, Labels, accumulation_dtype, named, replaced
from classbalance_losses.kernels.factors import indices
from classbalance_losses.kernels.forms.reference import AnyForm, CrossEntropy, Focal, Form, Mixed, Smoothed
from classbalance_losses.kernels.plain import can_read_values, is_constant, keepable
from classbalance_losses.ops.sums import ImageSums, Needs, block_diagonal
from classbalance_losses.ops.tasks import Reading, grouped, read


class Pixels:
    """Logits and labels of a call, checked, and the backend that works on them.

    Its rows and classes are those of `tasks`: C = 2L where each of L labels is a class of its own, present or not.
    """

    _names: tuple[str, ...] = (
        *(
            "reduction",
            "process_group",
            "task",
            "num_images",
            "dtype",
            "logits",
            "labels",
            "groups",
            "_shape",
        ),
        *("soft", "_classes", "pixel_weight", "_needs", "_found", "_table", "_fast", "backend"),
    )

    def __init__(
        self,
        input: Tensor,
        target: Tensor,
        pixel_weight: Tensor | None,
        common: Common,
        *,
        learned: Sequence[object] = (),
        needs: Needs | None = None,
    ) -> None:
        """Check the arguments of a call, and choose the backend.

        ``learned`` are weights that may have a gradient, as ``pixel_weight`` may. ``needs`` says what the terms of a
        sum need, so that they share a pass.
        """
        options = completed(common)
        total = check_call(input, target, pixel_weight, options)
        target, pixel_weight = keepable(target), None if pixel_weight is None else keepable(pixel_weight)
        self.reduction, self.process_group = options["reduction"], options["process_group"]
        self.task, self.num_images = options["task"], input.shape[0] if input.ndim > 1 else 1
        self._set(read(input, target, pixel_weight, options, total), accumulation_dtype(input.dtype))
        self._needs = needs
        self._found: dict[str, Tensor] = {}
        self._table: ClassSums | None = None
        shares = None if self.soft is None else target
        weights = [weight for weight in (pixel_weight, shares, *learned) if isinstance(weight, Tensor)]
        constant = all(map(is_constant, weights))
        self._fast = backend_for(self.logits, self.labels, self.pixel_weight, constant=constant)
        self.backend = self._fast
        if self.soft is None:
            self._check_labels()

    def _copied(self) -> Self:
        """Return a shallow copy, by a way that every torch.compile follows: `copy` is none of torch 2.11."""
        other: Self = object.__new__(type(self))
        for name in self._names:
            setattr(other, name, getattr(self, name))
        return other

    def _set(self, reading: Reading, dtype: torch.dtype) -> None:
        self.dtype, self.logits, self.labels = dtype, reading.logits, reading.labels
        self.groups, self._shape, self.soft = reading.groups, reading.shape, reading.soft
        self._classes: Labels | None = None
        weight = reading.pixel_weight
        self.pixel_weight = None if weight is None else weight.to(dtype)

    @property
    def classes(self) -> Labels:
        """The labels as classes of all sums."""
        if self._classes is None:
            self._classes = self._make_classes()
        return self._classes

    def _make_classes(self) -> Labels:
        return grouped(self.labels, self.groups)

    @property
    def entry_weight(self) -> Tensor | None:
        """Q of each pixel whose label is summed; of soft labels q t of each entry."""
        return self.pixel_weight

    def class_vector(self, name: str, value: object) -> Tensor:
        """Return the numbers of the classes (C,) that the call was given, in the loss's dtype."""
        shape: tuple[int, ...] = (self.labels.num_classes,)
        if self.task == "multilabel" or self.groups > 1:  # of labels, absent and present, or of images
            shape = (self.groups, *shape)
        return class_vector_of_call(name, value, self.logits.input, shape).to(self.dtype).flatten()

    def ones(self) -> Tensor:
        """Return 1 for each class (C,)."""
        return torch.ones(self.classes.num_classes, dtype=self.dtype, device=self.logits.input.device)

    def _check_labels(self) -> None:
        """Check that each label is a class or ignored: values are read on the CPU; kernels for CUDA assert it.

        Loops have bytes made of wider labels on the way.
        """
        target, num_classes, ignore_index = self.labels
        if target.device.type == "cuda" and self.backend is not reference:
            return
        narrowed, outside = getattr(self.backend, "narrowed", None), 1
        if narrowed is not None and can_read_values(target):
            outside, self.labels = narrowed(self.labels)
        if outside:
            check_target_range(target, num_classes, ignore_index)

    def without_weightless(self) -> Self:
        """Return the same where pixels of weight 0 do not count."""
        if self.pixel_weight is None:
            return self
        if self._needs is not None:  # the pass that others share is of all pixels
            self._run(self._needs)
        kept, other = self.pixel_weight != 0, self._copied()
        target = torch.where(kept, self.labels.target.long(), self.labels.ignore_index)
        other.labels, other._classes, other._table = replaced(self.labels, target=target), None, None
        return other

    def takes_image_weights(self, weight: Tensor) -> bool:
        """Whether a weight (N, C) has numbers of the classes for each image."""
        return self.task == "multiclass" and weight.shape[0] == self.num_images

    def by_image(self) -> Self:
        """Return the same where the classes of each image are classes of their own."""
        other = self._copied()
        other.groups, other._classes = self.num_images, None
        return other

    def reduced(self, reduction: str) -> Self:
        """Return the same with another reduction."""
        other = self._copied()
        other.reduction = reduction
        return other

    def biased(self, bias: Tensor) -> Self:
        """Return the same where constants (G, C') of each group of rows are added to the logits."""
        other, logits = self._copied(), self.logits
        other._needs, other._found, other._table = None, {}, None
        if self.groups == 1:
            other.logits = replaced(logits, bias=bias[0].to(self.dtype))
        else:  # of one logit a row, against 0
            own = (bias[:, 1] - bias[:, 0]).to(self.dtype).repeat(self.num_images)
            shifted = logits.input.to(self.dtype) + own.view(-1, *[1] * (logits.input.ndim - 1))
            other.logits = replaced(logits, input=shifted)
        return other

    def values(self, form: AnyForm) -> Tensor:
        """Return φ of each pixel (M, *), 0 where its label does not count."""
        if isinstance(form, CrossEntropy):
            return self.cross_entropy(ranked=form.ranked)
        if isinstance(form, Focal) and self._shares_loss():
            return form.of_loss(self.cross_entropy())
        form = self._fused(form)
        if isinstance(form, Mixed):
            return form.value(self.logits.full_size(), *indices(self.labels))
        if isinstance(form, Smoothed) and form.weight.numel() != self.labels.num_classes:
            return self._smoothed_by_group(form)
        if self._needs is not None and self._joins(self._needs):
            return self._run(self._needs, form)["form"]
        return self.backend.pixel_values(self.logits, self.labels, form)

    def _joins(self, needs: Needs) -> bool:
        """Whether a form that is no function of ℓ can share the pass of a sum's terms, which is still to come."""
        return not self._has(needs) and (self.shares_forms or not (needs.loss or needs.error))

    @property
    def shares_forms(self) -> bool:
        """Whether the backend has any form beside ℓ in one pass."""
        return hasattr(self.backend, "loss_and_form")

    def _has(self, needs: Needs) -> bool:
        """Whether a pass has been over the logits that found all that the losses need."""
        asked = {"loss": needs.loss, "error": needs.error, "probability": needs.overlap}
        return all(name in self._found for name, is_asked in asked.items() if is_asked)

    def _fused(self, form: AnyForm) -> AnyForm:
        """Return the form that a pass has, of cross-entropy mixed with that of all classes."""
        if isinstance(form, Mixed) and isinstance(form.form, CrossEntropy):
            return Smoothed(form.label_smoothing, self.ones()[: self.labels.num_classes])
        return form

    def _shares_loss(self) -> bool:
        """Whether ℓ is another term's, too."""
        return self._needs is not None and self._needs.loss

    def _smoothed_by_group(self, form: Smoothed) -> Tensor:
        """Return the values where each group of rows has weights of its own."""
        groups, values = self.groups, []
        for g, weight in enumerate(form.weight.view(groups, -1)):
            logits = replaced(self.logits, input=self.logits.input[g::groups])
            labels = replaced(self.labels, target=self.labels.target[g::groups])
            values.append(self.backend.pixel_values(logits, labels, replaced(form, weight=weight)))
        return torch.stack(values, 1).flatten(0, 1)

    def cross_entropy(self, *, ranked: bool = False) -> Tensor:
        """Return ℓ of each pixel (M, *), which is computed once."""
        needs = self._needs if self._shares_loss() else Needs(loss=True, ranked=ranked)
        assert needs is not None
        return self._run(needs)["loss"]

    def cross_entropy_and_error(self) -> tuple[Tensor, Tensor]:
        r"""Return the cross-entropy, and the constant :math:`\lVert p_i - e_{y_i} \rVert^2` (M, *)."""
        found = self._run(self._needs or Needs(loss=True, error=True))
        return found["loss"], found["error"]

    def image_sums(self) -> ImageSums:
        """Return the sums of probabilities and labels over each image's pixels, (N, C), or (N, L) where labels are."""
        found = self._run(self._needs or Needs(overlap=True))
        return self._by_image(found["probability"], found["own"], *self._counts(self.labels.target.shape[0]))

    def sums_of_all(self) -> ImageSums:
        """Return the same over the pixels of the batch, (1, C) or (1, L)."""
        if self.soft is not None or self.groups > 1:
            return ImageSums(*(of.sum(0, keepdim=True) for of in self.image_sums()))
        found = self._run(self._needs or Needs(overlap=True))
        both = (found[name].sum(0, keepdim=True) for name in ("probability", "own"))
        return self._by_image(*both, *self._counts(1))

    def _counts(self, rows: int) -> tuple[Tensor, Tensor]:
        """Return the sums of weights, and of pixels, of each row and class."""
        counts = self.backend.class_sums(self.labels, self.pixel_weight, rows=max(rows, 1))
        count = counts.number[:rows]
        return count if counts.value is None else counts.value[:rows], count

    def _by_image(self, *sums: Tensor) -> ImageSums:
        """Return sums of rows and their classes, (M, C'), as they are or, of labels present, by image and label."""
        if self.logits.single:
            sums = tuple(table[:, 1].reshape(-1, self.groups) for table in sums)
        return ImageSums(*sums)

    def _run(self, needs: Needs, other: Form | None = None) -> dict[str, Tensor]:
        """Pass over the logits, once, for all that the losses need, another form among it."""
        if self._has(needs):
            return self._found
        form = CrossEntropy(ranked=needs.ranked)
        found: dict[str, Tensor | None] = {}
        if needs.overlap or other is not None:
            found = self._run_shared(needs, form if needs.loss or needs.error else None, other)
        elif needs.error:
            found["loss"], found["error"] = self.backend.cross_entropy_and_error(self.logits, self.labels)
        else:
            found["loss"] = self.backend.pixel_values(self.logits, self.labels, form)
        self._found.update({name: value for name, value in found.items() if value is not None})
        return self._found

    def _run_shared(
        self, needs: Needs, loss: CrossEntropy | None, other: Form | None
    ) -> dict[str, Tensor | None]:
        backend: Any = self.backend  # loss and another form: where `_joins` says so
        if not needs.overlap:
            found = backend.loss_and_form(self.logits, self.labels, loss, other, with_error=needs.error)
            return dict(zip(("loss", "error", "form"), found, strict=True))
        pass_over = partial(backend.values_and_overlap, self.logits, self.labels)
        if loss is None:
            sums, form, *_ = pass_over(other, self.pixel_weight)
            return {**named(sums), "form": form}
        beside = {} if other is None else {"other": other}
        sums, value, error, form = pass_over(loss, self.pixel_weight, with_error=needs.error, **beside)
        return {**named(sums), "loss": value, "error": error, "form": form}

    def probability(self) -> Tensor:
        """Return p (M, C', *), of pixels that do not count any numbers."""
        input = torch.where(indices(self.labels)[1].unsqueeze(1), self.logits.full_size(), 0)
        return F.softmax(input, 1, dtype=self.dtype)

    def share(self, c: int, weight: Tensor | None) -> Tensor:
        """Return q of the pixels whose label is class c of their row, (M, *), and 0 elsewhere."""
        target, keep = indices(self.labels)
        return torch.where(keep & (target == c), 1 if weight is None else weight, 0).to(self.dtype)

    def error_sums(self, weight: Tensor | None, *, squared: bool) -> Tensor:
        r"""Return :math:`\sum_{y_i = a} q_i \delta_{ib}`, or of :math:`\delta_{ib}^2`, (C, C), of all ranks."""
        logits = replaced(self.logits, input=self.logits.input.detach())
        blocks = []
        for g in range(self.groups):  # of a label's entries: there are no errors of other labels
            of = replaced(logits, input=logits.input[g :: self.groups])
            labels = replaced(self.labels, target=self.labels.target[g :: self.groups])
            own = None if weight is None else weight[g :: self.groups]
            blocks.append(self.backend.error_sums(of, labels, own, squared=squared))
        return all_reduce_sum(block_diagonal(blocks), self.process_group)
