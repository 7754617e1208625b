"""Deep supervision: one loss over the outputs of several decoder levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from classbalance_losses._validate import check_range
from classbalance_losses.losses._base import Loss, PixelLoss, SumLoss


class DeepSupervision(Loss):
    r"""A loss of each of a model's outputs, :math:`L = \sum_l a_l L(z^{(l)}, y^{(l)})`.

    Outputs of another size than the target meet labels that are resized to them, by nearest neighbour; where the loss
    has ``upsample``, it is the logits that are resized.

    Args:
        loss: the loss of an output.
        weights: :math:`a_l \ge 0`, one for each output; or ``None`` for 1, ½, ¼ and so on.

    Raises:
        TypeError: for outputs that are no list or tuple.
        ValueError: for a weight below 0, or as many outputs as there are not weights.

    Examples:
        >>> criterion = DeepSupervision(DyCELoss() + DiceLoss(), weights=[1.0, 0.5, 0.25])
    """

    def __init__(self, loss: PixelLoss | SumLoss, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        for weight in weights or ():
            check_range("weight of an output", weight, 0)
        self.loss = loss
        self.weights = None if weights is None else tuple(float(weight) for weight in weights)

    def forward(
        self, input: Sequence[Tensor], target: Tensor, *, pixel_weight: Tensor | None = None
    ) -> Tensor:
        """Return the loss of logits (N, C, *), one for each level, against labels of any size."""
        if not isinstance(input, (list, tuple)) or not input:
            raise TypeError(
                f"Expected a list of outputs, got {type(input).__name__}. Of one output pass [input], or use the loss."
            )
        weights = self.weights or tuple(0.5**level for level in range(len(input)))
        if len(weights) != len(input):
            raise ValueError(
                f"Expected {len(weights)} outputs, one for each weight, got {len(input)}. Build "
                f"DeepSupervision(loss, weights) with {len(input)} weights."
            )
        losses = [self._one(head, target, pixel_weight) for head in input]
        return torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum()

    def _one(self, input: Tensor, target: Tensor, pixel_weight: Tensor | None) -> Tensor:
        size = input.shape[2:]
        if self.upsample is None:
            target = _nearest(target, size)
            pixel_weight = None if pixel_weight is None else _nearest(pixel_weight, size)
        loss: Tensor = self.loss(input, target, pixel_weight=pixel_weight)
        return loss

    @property
    def process_group(self) -> Any:
        """The group of the loss."""
        return self.loss.process_group

    @process_group.setter
    def process_group(self, group: Any) -> None:
        self.loss.process_group = group

    @property
    def upsample(self) -> str | None:
        """Of the loss."""
        first = self.loss.losses[0] if isinstance(self.loss, SumLoss) else self.loss
        return getattr(first, "upsample", None)

    def extra_repr(self) -> str:
        """Show the weights."""
        return f"weights={self.weights}"


def _nearest(target: Tensor, size: Sequence[int]) -> Tensor:
    """Resize labels (..., *) to a spatial size as ``F.interpolate`` does with mode "nearest"; any dtype."""
    first = target.ndim - len(size)
    for axis, (old, new) in enumerate(zip(target.shape[first:], size, strict=True), first):
        if old != new:
            index = torch.arange(new, dtype=torch.int64, device=target.device) * old // new
            target = target.index_select(axis, index)
    return target
