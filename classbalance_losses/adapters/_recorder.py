"""What a loss did to each class since it was last asked: gathered on the device, read in one transfer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from classbalance_losses._distributed import all_reduce_sum
from classbalance_losses._recompute import is_recomputation
from classbalance_losses.losses._base import PixelLoss
from classbalance_losses.losses.dyce import DyCELoss
from classbalance_losses.losses.focal import FocalLoss
from classbalance_losses.losses.gbw import GBWLoss
from classbalance_losses.losses.weighted_cross_entropy import WeightedCrossEntropyLoss
from classbalance_losses.ops.counts import class_counts, class_sums
from classbalance_losses.ops.logits import logits_for
from classbalance_losses.ops.mining import hardest, with_weight
from classbalance_losses.ops.pixel import long_target, pixel_cross_entropy, valid_pixels
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
        target = long_target(target)
        keep = valid_pixels(target, loss.ignore_index)
        logits = logits_for(input.detach(), target, loss.upsample, loss.align_corners)
        pixel_loss = pixel_cross_entropy(logits, target, keep)
        sums = class_sums(pixel_loss, target, keep, input.shape[1])
        counts = class_counts(target, keep, input.shape[1])
        former = self._totals or (torch.zeros_like(sums), torch.zeros_like(counts))
        self._totals = former[0] + sums, former[1] + counts
        if isinstance(loss, DyCELoss):
            self._record_mining(loss, pixel_loss, target, with_weight(keep, pixel_weight), input.shape[1])
        else:
            weight = _stored_weight(loss)
            self._weight = self._weight if weight is None else weight.detach().clone()

    def _record_mining(
        self, loss: DyCELoss, pixel_loss: Tensor, target: Tensor, keep: Tensor, num_classes: int
    ) -> None:
        hard = hardest(
            pixel_loss,
            keep,
            fraction=loss.hard_fraction,
            min_kept=loss.min_kept,
            scope=loss.scope,
            process_group=loss.process_group,
        )
        self._threshold = torch.where(hard.mask, pixel_loss, torch.inf).amin()
        count = all_reduce_sum(hard.by_class(target, num_classes).counts(), loss.process_group)
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
