"""nnU-Net: a trainer whose Dice + cross-entropy has another loss in the place of the cross-entropy."""

from __future__ import annotations

from torch import Tensor, nn

from classbalance_losses.losses._base import PixelLoss
from classbalance_losses.losses.dyce import DyCELoss

try:
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
except ImportError as error:
    raise ImportError("classbalance_losses.adapters.nnunet needs nnU-Net: pip install nnunetv2") from error


class ClassBalanceTrainer(nnUNetTrainer):
    """nnU-Net's trainer with DyCE in place of the cross-entropy; override :meth:`build_voxel_loss` for another.

    nnU-Net finds trainers by their class's name in its own folder and in those of the environment variable
    ``nnUNet_extTrainer``: put a subclass in a file there. Its Dice, the factors of the two terms, deep supervision
    and the ignore label stay as they are. The checkpoints of nnU-Net do not hold the state of a loss.
    """

    def build_voxel_loss(self, ignore_index: int) -> PixelLoss:
        """Return the loss that takes the place of the cross-entropy.

        Args:
            ignore_index: the data set's ignore label, or -100 where it has none.
        """
        return DyCELoss(ignore_index=ignore_index)

    def _build_loss(self) -> nn.Module:
        loss: nn.Module = super()._build_loss()
        compound = loss.loss if isinstance(loss, DeepSupervisionWrapper) else loss
        if not isinstance(compound, DC_and_CE_loss):
            raise TypeError(
                f"Expected a Dice + cross-entropy, got {type(compound).__name__}: a data set of regions has one "
                "sigmoid a region, and no softmax over classes."
            )
        ignore = self.label_manager.ignore_label
        compound.ce = VoxelLoss(self.build_voxel_loss(-100 if ignore is None else ignore)).to(self.device)
        return loss


class VoxelLoss(nn.Module):
    """A loss with the call of nnU-Net's ``RobustCrossEntropyLoss``: labels (N, *) or (N, 1, *), of any dtype.

    The state of the loss moves in training alone, known by the logits' gradient: nnU-Net does not call ``eval()`` on
    its losses.
    """

    def __init__(self, loss: PixelLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (N, C, *)."""
        labels = target[:, 0] if target.ndim == input.ndim else target
        self.loss.train(input.requires_grad)
        loss: Tensor = self.loss(input, labels.long())
        return loss
