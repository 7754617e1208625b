"""What a loss did to each class since it was last asked: gathered on the device, read in one transfer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from classbalance_losses._distributed import all_reduce_sum
from classbalance_losses._options import Common
from classbalance_losses._recompute import is_recomputation
from classbalance_losses.kernels.forms.reference import CrossEntropy
from classbalance_losses.kernels.reference import indices, members
from classbalance_losses.losses._base import PixelLoss
from classbalance_losses.losses.dyce import DyCELoss
from classbalance_losses.losses.focal import FocalLoss
from classbalance_losses.losses.gbw import GBWLoss
from classbalance_losses.losses.weighted_cross_entropy import WeightedCrossEntropyLoss
from classbalance_losses.ops.batch import Batch
from classbalance_losses.ops.soft import batch_for
from classbalance_losses.ops.weights import inverse_power
from classbalance_losses.state import ClassWeightEstimator


class Report(NamedTuple):
    """One loss, read: each list has one entry a class.

    Attributes:
        class_loss: mean cross-entropy of each class's pixels; nan for a class without pixels.
        class_weight: weights of the last batch; empty for a loss that has none.
        threshold: smallest cross-entropy of the last batch's mined pixels; ``None`` for a loss that mines none.
    """

    class_loss: list[float]
    class_weight: list[float]
    threshold: float | None


class ClassRecorder:
    """Watches the calls of a loss in training. No call waits for the device; :meth:`read` does.

    Args:
        loss: the loss to watch, until :meth:`remove`.
    """

    def __init__(self, loss: PixelLoss) -> None:
        self.loss = loss
        self._hooks = [loss.register_forward_hook(self._record, with_kwargs=True)]
        estimator = getattr(loss, "weight", None)
        if isinstance(estimator, ClassWeightEstimator):
            self._hooks.append(estimator.register_forward_hook(self._keep_weight))
        self._forget()

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
        parts = [sums / counts, self._weight, self._threshold]
        sizes = [0 if part is None else part.numel() for part in parts]
        values: list[float] = torch.cat([p.flatten() for p in parts if p is not None]).tolist()
        self._forget()
        threshold = values[-1] if sizes[2] else None
        return Report(values[: sizes[0]], values[sizes[0] : sizes[0] + sizes[1]], threshold)

    def _forget(self) -> None:
        self._totals: tuple[Tensor, Tensor] | None = None  # of cross-entropy and of pixels, (C,)
        self._weight: Tensor | None = None
        self._threshold: Tensor | None = None

    def _keep_weight(self, estimator: nn.Module, args: Any, weight: Tensor) -> None:
        if estimator.training:
            self._weight = weight.detach()

    def _record(self, loss: PixelLoss, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        # A validation on one rank must not wait for the others, nor a recomputation count twice.
        if loss.training and torch.is_grad_enabled() and not is_recomputation():
            with torch.no_grad():
                self._add(loss, *_call(*args, **kwargs))

    def _add(self, loss: PixelLoss, input: Tensor, target: Tensor, pixel_weight: Tensor | None) -> None:
        batch = batch_for(input.detach(), target, None, {**loss.common, "process_group": None})
        number, sums, pixel_loss, _ = batch.class_sums(batch.values(CrossEntropy(ranked=True)))
        former = self._totals or (torch.zeros_like(sums), torch.zeros_like(number))
        self._totals = former[0] + sums, former[1] + number
        if isinstance(loss, DyCELoss):
            options: Common = {**loss.common, "process_group": loss.process_group}
            mined = batch_for(input.detach(), target, pixel_weight, options).without_weightless()
            self._record_mining(loss, mined, pixel_loss)
        else:
            weight = _stored_weight(loss)
            self._weight = self._weight if weight is None else weight.detach().clone()

    def _record_mining(self, loss: DyCELoss, batch: Batch, pixel_loss: Tensor) -> None:
        hard = batch.hardest(
            pixel_loss, fraction=loss.hard_fraction, min_kept=loss.min_kept, scope=loss.scope
        )
        mask, _ = members(hard, indices(batch.labels)[1])
        self._threshold = torch.where(mask, pixel_loss, torch.inf).amin()
        count = batch.class_sums(pixel_loss, hard).number
        total = count.sum()
        coefficient = inverse_power(count, 1 - loss.omega, pixel_loss.dtype)
        normalizer = total**loss.omega if loss.normalize == "paper" else (coefficient * count).sum()
        self._weight = coefficient * total / torch.where(normalizer > 0, normalizer, 1)


def _call(
    input: Tensor, target: Tensor, *, pixel_weight: Tensor | None = None, **_: Any
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the arguments that all losses have, given by position or by name."""
    return input, target, pixel_weight


def _stored_weight(loss: PixelLoss) -> Tensor | None:
    """Return the weights (C,) that a loss keeps as a tensor."""
    weight: object = None
    if isinstance(loss, GBWLoss):
        weight = loss.class_weight
    elif isinstance(loss, WeightedCrossEntropyLoss):
        weight = loss.weight
    elif isinstance(loss, FocalLoss):
        weight = loss.alpha
    return weight if isinstance(weight, Tensor) else None
