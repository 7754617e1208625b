"""Sums of losses, such as a cross-entropy and Dice, in one pass over the logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from classbalance_losses._recompute import recomputable
from classbalance_losses._validate import check_range
from classbalance_losses.losses._base import Loss, PixelLoss
from classbalance_losses.ops.batch import Needs
from classbalance_losses.ops.soft import batch_for

_SHARED = ("task", "ignore_index", "upsample", "align_corners", "process_group")


class SumLoss(Loss):
    r"""A weighted sum of losses on the same logits, :math:`L = \sum_t a_t L_t`, as ``DyCELoss() + 0.5 * DiceLoss()``.

    Cross-entropies of all kinds, focal, DyCE, GBW and the overlap losses share one pass over the logits, and one back;
    the dual losses, label smoothing and adjusted logits take one each, as do soft labels.

    Args:
        terms: pairs of a weight :math:`a_t \ge 0` and a loss. The losses agree on ``task``, ``ignore_index``,
            ``upsample``, ``align_corners`` and ``process_group``, and none has the reduction "none".

    Attributes:
        losses: the losses, an ``nn.ModuleList``.
        weights: their weights, a tuple.
        terms: the last value of each, without its weight, detached: a dict by the loss's name. It synchronises nothing.

    Raises:
        ValueError: for terms that do not agree, none, or a weight below 0.
        TypeError: for what is no loss of this package on logits.

    Examples:
        >>> criterion = DyCELoss() + 0.5 * DiceLoss()
        >>> criterion = SumLoss([(1.0, DyCELoss()), (0.5, DiceLoss())])  # the same
    """

    def __init__(self, terms: Sequence[tuple[float, PixelLoss]]) -> None:
        super().__init__()
        if not terms:
            raise ValueError("Expected a term at least, a pair of a weight and a loss, got none.")
        for weight, loss in terms:
            if not isinstance(loss, PixelLoss):
                raise TypeError(
                    f"Expected a loss of this package on logits, got {type(loss).__name__}. Add others up by their "
                    "values: ours(input, target) + other(input, target)."
                )
            check_range("weight of a term", weight, 0)
        self.weights = tuple(float(weight) for weight, _ in terms)
        self.losses = nn.ModuleList([loss for _, loss in terms])
        self.terms: dict[str, Tensor] = {}
        self._check()

    def _check(self) -> None:
        first, *others = self.losses
        for loss in self.losses:
            if loss.reduction == "none":
                raise ValueError(
                    f'{type(loss).__name__} has reduction="none", whose terms have shapes of their own: '
                    'pass reduction="mean" or "sum".'
                )
        for other in others:
            for name in _SHARED:
                mine, theirs = getattr(first, name), getattr(other, name)
                if mine != theirs:
                    raise ValueError(
                        f"Expected terms that agree, got {type(first).__name__}({name}={mine!r}) and "
                        f"{type(other).__name__}({name}={theirs!r}). Build both with the same {name}."
                    )

    @property
    def process_group(self) -> Any:
        """The group of all terms."""
        return self.losses[0].process_group

    @process_group.setter
    def process_group(self, group: Any) -> None:
        for loss in self.losses:
            loss.process_group = group

    @property
    def names(self) -> list[str]:
        """The losses' names, with a number from the second of a kind on."""
        kinds = [type(loss).__name__ for loss in self.losses]
        numbers = [kinds[:at].count(kind) for at, kind in enumerate(kinds)]
        return [f"{kind}{number + 1 if number else ''}" for kind, number in zip(kinds, numbers, strict=True)]

    def _needs(self) -> Needs:
        each = [loss.needs for loss in self.losses]
        return Needs(*(any(values) for values in zip(*each, strict=True)))

    @recomputable
    def forward(self, input: Tensor, target: Tensor, *, pixel_weight: Tensor | None = None) -> Tensor:
        """Return the sum of the losses of logits (N, C, *) against labels (N, *)."""
        self._check()  # options may have been assigned since
        losses: list[PixelLoss] = list(self.losses)  # type: ignore[arg-type]
        learned = tuple(weight for loss in losses for weight in loss.learned)
        common = losses[0].common
        batch = batch_for(input, target, pixel_weight, common, learned=learned, needs=self._needs())
        values = [loss.of(batch.reduced(loss.reduction)) for loss in losses]
        self.terms = {name: value.detach() for name, value in zip(self.names, values, strict=True)}
        return torch.stack([w * value for w, value in zip(self.weights, values, strict=True)]).sum()

    def extra_repr(self) -> str:
        """Show the weights."""
        return f"weights={self.weights}"

    def __add__(self, other: SumLoss | PixelLoss) -> SumLoss:
        return SumLoss([*_pairs(self), *_pairs(other)])

    def __mul__(self, factor: float) -> SumLoss:
        return SumLoss([(factor * weight, loss) for weight, loss in _pairs(self)])

    __rmul__ = __mul__


def _pairs(loss: SumLoss | PixelLoss) -> list[tuple[float, Any]]:
    return list(zip(loss.weights, loss.losses, strict=True)) if isinstance(loss, SumLoss) else [(1.0, loss)]
