"""What a loss did to each class since it was last asked: gathered on the device, read in one transfer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from classbalance_losses._distributed import all_reduce_sum
from classbalance_losses._options import Common
from classbalance_losses._recompute import is_recomputation
from classbalance_losses.adapters._losses import terms_of
from classbalance_losses.kernels.factors import indices, members
from classbalance_losses.kernels.forms.reference import CrossEntropy, smoothed
from classbalance_losses.losses._base import PixelLoss, SumLoss
from classbalance_losses.losses.dyce import DyCELoss
from classbalance_losses.losses.focal import FocalLoss, balance
from classbalance_losses.losses.gbw import GBWLoss
from classbalance_losses.losses.overlap import TverskyLoss
from classbalance_losses.losses.weighted_cross_entropy import WeightedCrossEntropyLoss
from classbalance_losses.ops.batch import Batch
from classbalance_losses.ops.soft import batch_for
from classbalance_losses.ops.weights import inverse_power
from classbalance_losses.state import ClassWeightEstimator


class TermReport(NamedTuple):
    """What a loss, or a term of a sum, did in the last batch.

    Attributes:
        value: of a term, without its factor in the sum; ``None`` for a loss that is no sum.
        class_weight: weights of the classes, (C,), 2L of labels absent and present, L of an overlap of labels; empty
            for a loss that has none.
        threshold: smallest cross-entropy of the mined pixels; ``None`` for a loss that mines none.
    """

    value: float | None
    class_weight: list[float]
    threshold: float | None


class Report(NamedTuple):
    """One loss, read.

    Attributes:
        class_loss: mean cross-entropy of each class's pixels, C or, of labels, 2L for each of them absent and present;
            nan for a class without pixels.
        terms: the loss's, by its class's name, or those of a sum by theirs.
        of_labels: whether the classes are labels absent and present.
    """

    class_loss: list[float]
    terms: dict[str, TermReport]
    of_labels: bool


class ClassRecorder:
    """Watches the calls of a loss, or of a sum of losses, in training. No call waits for the device; :meth:`read` does.

    Args:
        loss: the loss to watch, until :meth:`remove`.
    """

    def __init__(self, loss: PixelLoss | SumLoss) -> None:
        self.loss = loss
        names = loss.names if isinstance(loss, SumLoss) else [type(loss).__name__]
        self._terms = {name: _Term(term) for name, term in zip(names, terms_of(loss), strict=True)}
        self._hooks = [loss.register_forward_hook(self._record, with_kwargs=True)]
        for term in self._terms.values():
            estimator = getattr(term.loss, "weight", None)
            if isinstance(estimator, ClassWeightEstimator):
                self._hooks.append(estimator.register_forward_hook(partial(_keep_weight, term)))
        self._totals: tuple[Tensor, Tensor] | None = None  # of cross-entropy and of pixels, (C,)

    def remove(self) -> None:
        """Stop watching."""
        for hook in self._hooks:
            hook.remove()

    def read(self) -> Report | None:
        """Return what was gathered since the last time, ``None`` if nothing was, and begin anew.

        With the loss's ``process_group`` the mean is over all its ranks: they must all read.
        """
        if self._totals is None:
            return None
        sums, counts = (all_reduce_sum(total, self.loss.process_group) for total in self._totals)
        gathered = [
            part for term in self._terms.values() for part in (term.value, term.weight, term.threshold)
        ]
        class_loss, *numbers = _read_at_once([sums / counts, *gathered])
        self._totals = None
        reports = {}
        for at, (name, term) in enumerate(self._terms.items()):
            value, weight, threshold = numbers[3 * at : 3 * at + 3]
            reports[name] = TermReport(next(iter(value), None), weight, next(iter(threshold), None))
            term.value = term.weight = term.threshold = None
        return Report(class_loss, reports, terms_of(self.loss)[0].task != "multiclass")

    def _record(
        self, loss: PixelLoss | SumLoss, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor
    ) -> None:
        # A validation on one rank must not wait for the others, nor a recomputation count twice.
        if loss.training and torch.is_grad_enabled() and not is_recomputation():
            with torch.no_grad():
                self._add(*_call(*args, **kwargs))

    def _add(self, input: Tensor, target: Tensor, pixel_weight: Tensor | None) -> None:
        common: Common = {**next(iter(self._terms.values())).loss.common, "process_group": None}
        batch = batch_for(input.detach(), target, None, common)
        pixel_loss = batch.values(CrossEntropy(ranked=True))
        number, sums, *_ = batch.class_sums(pixel_loss)
        former = self._totals or (torch.zeros_like(sums), torch.zeros_like(number))
        self._totals = former[0] + sums, former[1] + number
        for name, term in self._terms.items():
            if isinstance(self.loss, SumLoss):
                term.value = self.loss.terms[name]
            if isinstance(term.loss, DyCELoss):
                common["process_group"] = self.loss.process_group
                mined = batch_for(input.detach(), target, pixel_weight, common).without_weightless()
                term.weight, term.threshold = _mining(term.loss, mined, pixel_loss)
            else:
                weight = _stored_weight(term.loss, batch)
                term.weight = term.weight if weight is None else weight.detach().clone()


@dataclass
class _Term:
    """What one loss did in the last batch."""

    loss: PixelLoss
    value: Tensor | None = None
    weight: Tensor | None = None
    threshold: Tensor | None = None


def _keep_weight(term: _Term, estimator: nn.Module, args: Any, weight: Tensor) -> None:
    if estimator.training:
        term.weight = weight.detach()


def _mining(loss: DyCELoss, batch: Batch, pixel_loss: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights (C,) of a batch's hard pixels, and the smallest loss among them."""
    if loss.label_smoothing:
        pixel_loss = batch.values(smoothed(CrossEntropy(ranked=True), loss.label_smoothing))
    hard = batch.hardest(pixel_loss, fraction=loss.hard_fraction, min_kept=loss.min_kept, scope=loss.scope)
    mask, _ = members(hard, indices(batch.labels)[1])
    threshold = torch.where(mask, hard.ranked, torch.inf).amin()
    count = batch.class_sums(pixel_loss, hard).number
    total = count.sum()
    coefficient = inverse_power(count, 1 - loss.omega, pixel_loss.dtype)
    normalizer = total**loss.omega if loss.normalize == "paper" else (coefficient * count).sum()
    return coefficient * total / torch.where(normalizer > 0, normalizer, 1), threshold


def _stored_weight(loss: PixelLoss, batch: Batch) -> Tensor | None:
    """Return the weights that do not depend on the batch: (C,), or (L,) of an overlap of labels."""
    if isinstance(loss, GBWLoss):
        return loss.class_weight
    if isinstance(loss, TverskyLoss):
        return loss.class_weight
    if isinstance(loss, WeightedCrossEntropyLoss) and isinstance(loss.weight, Tensor):
        return batch.class_vector("weight", loss.weight)
    if isinstance(loss, FocalLoss) and (isinstance(loss.alpha, Tensor) or loss.task != "multiclass"):
        return balance(loss.alpha, batch)
    return None


def _read_at_once(parts: Sequence[Tensor | None]) -> list[list[float]]:
    """Return the numbers of tensors, none of ``None``, in one transfer."""
    sizes = [0 if part is None else part.numel() for part in parts]
    numbers: list[float] = torch.cat([part.flatten() for part in parts if part is not None]).tolist()
    return [numbers[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]


def _call(
    input: Tensor, target: Tensor, *, pixel_weight: Tensor | None = None, **_: Any
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the arguments that all losses have, given by position or by name."""
    return input, target, pixel_weight
