"""MONAI: targets with a channel axis, one-hot targets, MetaTensors and deep supervision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from classbalance_losses.kernels.plain import can_read_values
from classbalance_losses.losses._base import PixelLoss


class MonaiLoss(nn.Module):
    """One of the losses, called as MONAI calls its own: ``loss(input, target)``.

    Deep supervision, in two ways. ``monai.losses.DeepSupervisionLoss(MonaiLoss(...))`` shrinks the labels to each
    head, and small classes may vanish from them. A list of heads given to a ``MonaiLoss`` whose loss has
    ``upsample="linear"`` is compared with the labels at full size instead. (``DynUNet`` returns its heads stacked:
    ``output.unbind(1)``.)

    Args:
        loss: the loss; ``ignore_index`` is its own.
        head_weights: factors of the heads, the first being the network's output; ``None`` for 1, ½, ¼, ...

    Shape:
        - input: logits (B, C, *), or a sequence of them.
        - target: class indices (B, 1, *) of any dtype, floats being whole numbers; or one-hot (B, C, *), where a
          voxel of no class is ignored.
    """

    def __init__(self, loss: PixelLoss, *, head_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.head_weights = None if head_weights is None else tuple(head_weights)

    def forward(self, input: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """Return the loss, or the weighted sum of the heads' losses.

        Raises:
            ValueError: the target is neither class indices nor one-hot, or there are more heads than weights, or
                fewer; and as from the loss.
        """
        if isinstance(input, Tensor):
            return self._one(input, target)
        weights = self.head_weights or [0.5**level for level in range(len(input))]
        if not input or len(weights) != len(input):
            raise ValueError(
                f"Expected {len(weights) or 'some'} heads, one for each weight, got {len(input)}."
            )
        losses = [weight * self._one(head, target) for weight, head in zip(weights, input, strict=True)]
        return torch.stack(losses).sum(0)

    def _one(self, input: Tensor, target: Tensor) -> Tensor:
        input, target = _plain(input), _plain(target)
        ignored = self.loss.ignore_index
        label = ignored if isinstance(ignored, int) else ignored[0]
        loss: Tensor = self.loss(input, class_indices(target, input.shape[1], label))
        return loss


def class_indices(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Turn MONAI's targets (B, 1, *) or (B, C, *) into class indices (B, *).

    Integer labels keep their dtype. Values are checked on the CPU; on CUDA an assertion on the device takes its
    place.

    Raises:
        ValueError: the target has another number of channels, or is neither whole numbers nor one-hot.
    """
    channels = target.shape[1] if target.ndim > 1 else 0
    if channels == 1:
        if target.dtype == torch.bool:
            return target[:, 0].to(torch.uint8)
        if not target.is_floating_point():
            return target[:, 0]
        labels = target[:, 0]
        _require(
            (labels == labels.round()).all(),
            'Expected whole numbers as labels, got fractions: resample with mode="nearest".',
        )
        return labels.long()
    if channels != num_classes:
        raise ValueError(
            f"Expected target of shape (B, 1, *), or one-hot (B, {num_classes}, *), got {tuple(target.shape)}."
        )
    member = target == 1
    none = target == 0
    _require(
        ((member | none).all(1) & (member.sum(1) <= 1)).all(),
        "Expected a one-hot target, of 0 and a single 1 "
        "a voxel, got other values. Pass class indices, target.argmax(1, keepdim=True).",
    )
    return torch.where(member.any(1), member.to(torch.uint8).argmax(1), ignore_index)


def _plain(tensor: Tensor) -> Tensor:
    """Leave a MetaTensor's metadata behind: a loss has none, and the fast paths take plain tensors."""
    return tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)


def _require(condition: Tensor, message: str) -> None:
    if can_read_values(condition):
        if not bool(condition):
            raise ValueError(message)
    elif condition.device.type == "cuda":
        torch._assert_async(condition, message)
