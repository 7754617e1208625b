"""Deep supervision: one loss over the outputs of several decoder levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from classbalance_losses._validate import check_tensor
from classbalance_losses._validate_options import check_range
from classbalance_losses.losses._base import Loss, PixelLoss, SumLoss, check_terms


class DeepSupervision(Loss):
    r"""A loss of each of a model's outputs, :math:`L = \sum_l a_l L(z^{(l)}, y^{(l)})`.

    Outputs of another size than the target meet labels that are resized to them, by nearest neighbour; where the loss
    has ``upsample``, it is the logits that are resized.

    Args:
        loss: the loss of an output.
        weights: :math:`a_l \ge 0`, one for each output; or ``None`` for 1, ½, ¼ and so on.

    Raises:
        TypeError: for outputs that are no list or tuple, or another loss.
        ValueError: for a weight below 0, as many outputs as there are not weights, or the reduction "none".

    Examples:
        >>> criterion = DeepSupervision(DyCELoss() + DiceLoss(), weights=[1.0, 0.5, 0.25])
    """

    def __init__(self, loss: PixelLoss | SumLoss, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if not isinstance(loss, (PixelLoss, SumLoss)):
            raise TypeError(
                f"Expected a loss of this package on logits and labels, or a sum of such, got {loss!r}. With another "
                "write the sum: sum(w * loss(head, target) for w, head in zip(weights, input))."
            )
        check_terms(loss)
        self.loss = loss
        self.weights = weights

    @property
    def weights(self) -> tuple[float, ...] | None:
        """One for each output, or ``None`` for 1, ½, ¼ and so on."""
        return self._weights

    @weights.setter
    def weights(self, weights: Sequence[float] | None) -> None:
        self._weights = None if weights is None else _numbers(weights)

    def forward(
        self, input: Sequence[Tensor], target: Tensor, *, pixel_weight: Tensor | None = None
    ) -> Tensor:
        """Return the loss of logits (N, C, *), one for each level, against labels of any size."""
        if not isinstance(input, (list, tuple)) or not input:
            raise TypeError(f"Expected a list of outputs, got {_told(input)}")
        check_tensor("target", target)
        if pixel_weight is not None:
            check_tensor("pixel_weight", pixel_weight)
        weights = self.weights or tuple(0.5**level for level in range(len(input)))
        if len(weights) != len(input):
            raise ValueError(
                f"Expected {len(weights)} outputs, one for each weight, got {len(input)}. Build "
                f"DeepSupervision(loss, weights) with {len(input)} weights."
            )
        losses = [self._one(head, target, pixel_weight) for head in input]
        return torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum()

    def _one(self, input: Tensor, target: Tensor, pixel_weight: Tensor | None) -> Tensor:
        check_tensor("input", input)
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


def _numbers(weights: Any) -> tuple[float, ...]:
    """Return the weights of the outputs, checked; those of an array or a tensor, too."""
    values = weights.tolist() if hasattr(weights, "tolist") else weights
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise TypeError(
            f"Expected weights to be a sequence of numbers, one for each output, got {weights!r}. Pass None for 1, ½, "
            "¼ and so on."
        )
    for weight in values:
        check_range("weight of an output", weight, 0)
    return tuple(map(float, values))


def _told(input: object) -> str:
    """Say what came in the place of a list of outputs, and how to make one of it."""
    if isinstance(input, Mapping):
        return f"a mapping of {', '.join(map(repr, input))}. Pass list(input.values()), in the order of the weights."
    if isinstance(input, Tensor):
        return (
            "a tensor. Of one output pass [input], or use the loss; of outputs that are stacked on axis 1, "
            "input.unbind(1)."
        )
    if isinstance(input, (list, tuple)):
        return "none. Pass the outputs of a model, one at least."
    return f"{type(input).__name__}. Pass list(input)."


def _nearest(target: Tensor, size: Sequence[int]) -> Tensor:
    """Resize labels (..., *) to a spatial size as ``F.interpolate`` does with mode "nearest"; any dtype."""
    first = target.ndim - len(size)
    if first < 1 or not all(target.shape[first:]):  # the loss says what is wrong
        return target
    for axis, (old, new) in enumerate(zip(target.shape[first:], size, strict=True), first):
        if old != new:
            # In float32, whose rounding is torch's: here and there it is not that of whole numbers.
            place = torch.arange(new, dtype=torch.float32, device=target.device) * (old / new)
            target = target.index_select(axis, place.long().clamp(max=old - 1))
    return target
