"""MONAI: targets with a channel axis, one-hot targets, masks, MetaTensors, dicts of outputs and deep supervision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from classbalance_losses._validate import check_tensor
from classbalance_losses.adapters._losses import fitted, ignored_label, masked, named_outputs, terms_of
from classbalance_losses.kernels.plain import can_read_values
from classbalance_losses.losses._base import PixelLoss, SumLoss
from classbalance_losses.losses.deep_supervision import DeepSupervision


class MonaiLoss(nn.Module):
    """A loss, or a sum of losses, called as MONAI calls its own: ``loss(input, target[, mask])``.

    A list of heads, as deep supervision has them, is compared with labels that are shrunk to each head, as
    ``monai.losses.DeepSupervisionLoss(MonaiLoss(...))`` does too, and small classes may vanish from them. With
    ``upsample="linear"`` the loss compares the heads with the labels at full size instead. (``DynUNet`` returns its
    heads stacked: ``output.unbind(1)``.)

    Args:
        loss: the loss; ``ignore_index`` and ``task`` are its own.
        head_weights: factors of the heads, the first being the network's output; ``None`` for 1, ½, ¼, ... Of a network
            that returns a dict, the factors by name, ``{"out": 1.0, "aux": 0.4}``; other entries do not count.
        soft_label: whether targets (B, C, *) are probabilities of the classes, or of labels, and not 0 and 1.

    Shape:
        - input: logits (B, C, *), or a sequence or a dict of them.
        - target: class indices (B, 1, *) of any dtype, floats being whole numbers; or one-hot (B, C, *), where a
          voxel of no class is ignored. With ``task="binary"`` (B, 1, *) and with "multilabel" (B, L, *) of 0 and 1.
        - mask: (B, 1, *) or (1, 1, *), 0 where a voxel is to be left out.
        - pixel_weight: (B, 1, *) or (1, 1, *).
    """

    def __init__(
        self,
        loss: PixelLoss | SumLoss,
        *,
        head_weights: Sequence[float] | Mapping[str, float] | None = None,
        soft_label: bool = False,
    ) -> None:
        super().__init__()
        self.task = terms_of(loss)[0].task
        self.loss = loss
        self.head_weights = head_weights
        self.soft_label = soft_label

    def forward(
        self,
        input: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
        target: Tensor,
        mask: Tensor | None = None,
        *,
        pixel_weight: Tensor | None = None,
    ) -> Tensor:
        """Return the loss, or the weighted sum of the heads' losses.

        Raises:
            ValueError: the target is neither class indices nor one-hot, or there are more heads than weights, or
                fewer; and as from the loss.
            TypeError: a dict comes without names in ``head_weights``, or lacks one.
        """
        heads = [_plain("input", head) for head in self._heads(input)]
        labels = self._labels(_plain("target", target), heads[0])
        if mask is not None:
            labels = masked(labels, _plain("mask", mask), ignored_label(self.loss))
        if pixel_weight is not None:
            shared = self.soft_label and self.task == "multiclass"  # one weight for all shares of a voxel
            weighted = labels[:, 0] if shared else labels
            pixel_weight = fitted("pixel_weight", _plain("pixel_weight", pixel_weight), weighted)
        if isinstance(input, Tensor):
            return self.loss(heads[0], labels, pixel_weight=pixel_weight)  # type: ignore[no-any-return]
        weights = self.head_weights
        numbers = list(weights.values()) if isinstance(weights, Mapping) else weights
        return DeepSupervision(self.loss, numbers)(heads, labels, pixel_weight=pixel_weight)  # type: ignore[no-any-return]

    def _heads(self, input: Tensor | Sequence[Tensor] | Mapping[str, Tensor]) -> Sequence[Tensor]:
        if not isinstance(input, (list, tuple, Mapping)):
            return [input]  # type: ignore[list-item]
        if not input:
            raise ValueError("Expected a head at least, got none.")
        if not isinstance(input, Mapping):
            return input
        if not isinstance(self.head_weights, Mapping):
            raise TypeError(
                f"Expected a factor for each head that counts of the outputs {list(input)}. Pass them by name: "
                f"MonaiLoss(loss, head_weights={{{next(iter(input))!r}: 1.0}})."
            )
        return named_outputs(input, self.head_weights)

    def _labels(self, target: Tensor, head: Tensor) -> Tensor:
        if self.soft_label:
            return target
        if self.task == "multiclass" and target.ndim == head.ndim - 1:
            raise ValueError(
                f"Expected target with a channel axis, (B, 1, *), got {tuple(target.shape)} for logits of shape "
                f"{tuple(head.shape)}. Pass target.unsqueeze(1)."
            )
        if self.task == "multiclass":
            return class_indices(target, head.shape[1], ignored_label(self.loss))
        return _whole(target)


def class_indices(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Turn MONAI's targets (B, 1, *) or (B, C, *) into class indices (B, *).

    Integer labels keep their dtype. Values are checked on the CPU; on CUDA an assertion on the device takes its
    place.

    Raises:
        ValueError: the target has another number of channels, or is neither whole numbers nor one-hot.
    """
    channels = target.shape[1] if target.ndim > 1 else 0
    if channels == 1:
        return _whole(target[:, 0])
    if channels != num_classes:
        raise ValueError(
            f"Expected target of shape (B, 1, *), or one-hot (B, {num_classes}, *), got {tuple(target.shape)}."
        )
    member = target == 1
    none = target == 0
    _require(
        ((member | none).all(1) & (member.sum(1) <= 1)).all(),
        "Expected a one-hot target, of 0 and a single 1 a voxel, got other values. Of probabilities build "
        'MonaiLoss(loss, soft_label=True), of several classes a voxel the loss with task="multilabel".',
    )
    return torch.where(member.any(1), member.to(torch.uint8).argmax(1), ignore_index)


def _whole(labels: Tensor) -> Tensor:
    """Return labels as integers."""
    if labels.dtype == torch.bool:
        return labels.to(torch.uint8)
    if not labels.is_floating_point():
        return labels
    _require(
        (labels == labels.round()).all(),
        'Expected whole numbers as labels, got fractions: resample with mode="nearest", or build '
        "MonaiLoss(loss, soft_label=True) if they are probabilities.",
    )
    return labels.long()


def _plain(name: str, tensor: Tensor) -> Tensor:
    """Leave a MetaTensor's metadata behind: a loss has none, and the fast paths take plain tensors."""
    check_tensor(name, tensor)
    return tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)


def _require(condition: Tensor, message: str) -> None:
    if can_read_values(condition):
        if not bool(condition):
            raise ValueError(message)
    elif condition.device.type == "cuda":
        torch._assert_async(condition, message)
