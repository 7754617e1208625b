"""nnU-Net: a trainer whose Dice + cross-entropy has another loss in the place of the cross-entropy, in one pass."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from classbalance_losses._options import Common
from classbalance_losses.adapters._losses import fitted, ignored_label, terms_of
from classbalance_losses.losses._base import PixelLoss, SumLoss
from classbalance_losses.losses.dyce import DyCELoss
from classbalance_losses.losses.overlap import DiceLoss

try:
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
except ImportError as error:
    raise ImportError("classbalance_losses.adapters.nnunet needs nnU-Net: pip install nnunetv2") from error


class ClassBalanceTrainer(nnUNetTrainer):
    """nnU-Net's trainer with DyCE in place of the cross-entropy; override :meth:`build_voxel_loss` for another.

    nnU-Net finds trainers by their class's name in its own folder and in those of the environment variable
    ``nnUNet_extTrainer``: put a subclass in a file there. Its deep supervision and its ignore label stay as they are.
    Dice is nnU-Net's, plus 1, computed in the other loss's pass over the logits. A data set of regions has a sigmoid a
    region. Under DistributedDataParallel the loss is that of all ranks' batches joined. The checkpoints of nnU-Net do
    not hold the state of a loss.
    """

    def build_voxel_loss(self, **options: Unpack[Common]) -> PixelLoss | SumLoss:
        """Return the loss that takes the place of the cross-entropy, or a weighted one, ``2 * DyCELoss(**options)``.

        Args:
            options: ``task``, ``ignore_index`` and ``process_group`` as the data set and the run need them: hand them
                to each loss.
        """
        return DyCELoss(**options)

    def _build_loss(self) -> nn.Module:
        regions, ignore = self.label_manager.has_regions, self.label_manager.ignore_label
        options: Common = {
            "task": "multilabel" if regions else "multiclass",
            # a target of regions has a channel that says what to ignore, and no label
            "ignore_index": -100 if regions or ignore is None else ignore,
            "process_group": "world" if self.is_ddp else None,
        }
        loss: nn.Module = VoxelLoss(self._voxel_loss(options) + self._dice(options)).to(self.device)
        built = super()._build_loss()
        if isinstance(built, DeepSupervisionWrapper):
            built.loss = loss  # its factors of the scales stay
            loss = built
        return loss

    def _voxel_loss(self, options: Common) -> PixelLoss | SumLoss:
        """Build the loss by the present signature or by the former one, of one argument."""
        parameters = list(inspect.signature(self.build_voxel_loss).parameters.values())
        if len(parameters) != 1 or parameters[0].kind is inspect.Parameter.VAR_KEYWORD:
            return self.build_voxel_loss(**options)
        warnings.warn(
            f"{type(self).__name__}.build_voxel_loss takes options now: write build_voxel_loss(self, **options), and "
            "hand them to each loss, DyCELoss(**options). The former way, of ignore_index alone, will go in 0.3.0.",
            FutureWarning,
            stacklevel=2,
        )
        former: Any = self.build_voxel_loss
        loss: PixelLoss | SumLoss = former(options["ignore_index"])
        return loss

    def _dice(self, options: Common) -> DiceLoss:
        """Return nnU-Net's Dice, 1e-5 over and under the line, of absent classes too but not of the background."""
        per_image = not self.configuration_manager.batch_dice
        return DiceLoss(
            smooth=0.5e-5, classes="all", include_background=False, per_image=per_image, **options
        )


class VoxelLoss(nn.Module):
    """A loss with the call of nnU-Net's, ``loss(output, target)``.

    The state of the loss moves in training alone, known by the logits' gradient: nnU-Net does not call ``eval()`` on
    its losses.

    Args:
        loss: the loss, or a sum of losses.
    """

    def __init__(self, loss: PixelLoss | SumLoss) -> None:
        super().__init__()
        self.task = terms_of(loss)[0].task
        self.loss = loss

    def forward(self, input: Tensor, target: Tensor, pixel_weight: Tensor | None = None) -> Tensor:
        """Return the loss.

        Args:
            input: logits (N, C, *).
            target: labels (N, 1, *) or (N, *) of any dtype; or regions (N, C, *) of 0 and 1, with one more channel
                where the data set has an ignore label, 1 where a voxel is left out.
            pixel_weight: (N, 1, *) or (N, *).
        """
        labels = self._labels(input, target)
        weight = None if pixel_weight is None else fitted("pixel_weight", pixel_weight, labels)
        self.loss.train(input.requires_grad)
        loss: Tensor = self.loss(input, labels, pixel_weight=weight)
        return loss

    def _labels(self, input: Tensor, target: Tensor) -> Tensor:
        if self.task == "multiclass":
            return (target[:, 0] if target.ndim == input.ndim else target).long()
        if target.shape[1] == input.shape[1]:
            return target.long()
        return torch.where(target[:, -1:] != 0, ignored_label(self.loss), target[:, :-1].long())
