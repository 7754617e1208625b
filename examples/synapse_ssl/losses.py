"""The supervised loss: a pixel loss, cross-entropy or DyCE, beside Dice."""

from __future__ import annotations

import torch
from monai.losses import DiceLoss
from torch import Tensor, nn

from classbalance_losses import DyCELoss, WeightedCrossEntropyLoss
from classbalance_losses.functional import weighted_cross_entropy_loss
from examples.synapse_ssl.config import SupervisedConfig


class SupervisedLoss(nn.Module):
    """scale * (pixel loss + Dice loss), or the pixel loss alone; in float32 whatever the logits are.

    Dice is MONAI's: over the foreground classes, sums over the whole batch, 1 - Dice. The published one is -Dice, of
    the same gradient, with 1e-8 (UA-MT, URPC) or 1 (the others) for MONAI's 1e-5 in numerator and denominator; they
    differ for classes that the batch lacks.

    A network that knows nothing yet cannot tell hard voxels from others: mined from the start, it may call everything
    background for hundreds of steps. So the share that DyCE mines can fall from 1 to its own in a straight line over
    the first `mining_ramp` of the training, as TensorFlow DeepLab's hard example mining does; DyCE's paper has no ramp.

    Args:
        config: which pixel loss, and whether Dice stands beside it.
        scale: of the sum; a pixel loss alone is not scaled.

    Raises:
        TypeError: a keyword in `pixel_options` that the pixel loss does not have.
        ValueError: an option out of its range.
    """

    def __init__(self, config: SupervisedConfig, scale: float) -> None:
        super().__init__()
        self.scale = scale
        kind = DyCELoss if config.pixel == "DyCE" else WeightedCrossEntropyLoss
        self.pixel: nn.Module = kind(**config.pixel_options)
        self.weigh_pixels = config.pixel == "CE"
        self.mining_ramp = config.mining_ramp
        self.hard_fraction = self.pixel.hard_fraction if isinstance(self.pixel, DyCELoss) else 1.0
        self.dice = (
            DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True, reduction="none")
            if config.dice
            else None
        )

    def set_progress(self, share: float) -> None:
        """Take the share of the training that is done, in [0, 1], from which the share to mine follows."""
        if isinstance(self.pixel, DyCELoss) and self.mining_ramp:
            done = min(share / self.mining_ramp, 1.0)
            self.pixel.hard_fraction = 1 + done * (self.hard_fraction - 1)

    def forward(self, logits: Tensor, label: Tensor, class_weight: Tensor | None = None) -> Tensor:
        """The loss of logits (N, C, D, H, W) against labels (N, D, H, W).

        Args:
            logits: of any floating-point type.
            label: class indices.
            class_weight: (C,), for DHC: of cross-entropy, whose sum is divided by the weights' sum, and of the
                classes' Dice. DyCE takes none: it weighs classes by itself.
        """
        logits = logits.float()
        if class_weight is not None and self.weigh_pixels:
            pixel = weighted_cross_entropy_loss(logits, label, class_weight)
        else:
            pixel = self.pixel(logits, label)
        if self.dice is None:
            return pixel
        overlap = self.dice(logits, label[:, None]).flatten()  # (C - 1,)
        if class_weight is not None:
            overlap = overlap * class_weight[1:]
        total: Tensor = self.scale * (pixel + overlap.mean())
        return total


def hard_dice(prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Dice (C,) of class indices over a whole batch, background included: DHC's measure of what is learned.

        (2 TP + e) / (2 TP + FP + FN + 2 e),    e = 1e-8

    The released code adds e once more below the line, so that a class that is in neither has 1/2.
    """
    found = (prediction, label, label[prediction == label])
    guessed, wanted, hit = (torch.bincount(x.flatten(), minlength=num_classes) for x in found)
    return (2 * hit + 1e-8) / (guessed + wanted + 2e-8)
