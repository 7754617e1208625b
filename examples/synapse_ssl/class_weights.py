"""The class weights of DHC and A&D: by how often the pseudo-labels have a class, and by how well it is learned.

Wang and Li, "Dual-debiased Heterogeneous Co-training Framework for Class-Imbalanced Semi-supervised Medical Image
Segmentation", MICCAI 2023, as its released code computes them. Both are buffers, so that checkpoints hold them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.synapse_ssl.losses import hard_dice

_TINY = 1e-8


class DistDW(nn.Module):
    """w_c = C * log(max n / n_c) / max_k log(max n / n_k), an exponential average over pseudo-label counts n.

    The most frequent class, the background, has weight 0. A class without voxels counts 1e-8 of them, so it has weight
    C and presses the others down, as in the released code. Where all classes are equally frequent, the formula is 0/0:
    all weights are 1 then.

    Args:
        counts: (C,) voxels of each class in the labelled volumes, where the average starts.
        momentum: of the average.
    """

    weight: Tensor

    def __init__(self, counts: Tensor, momentum: float = 0.99) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("weight", self._of(counts))

    @torch.no_grad()
    def forward(self, prediction: Tensor) -> Tensor:
        """The weights (C,) after the pseudo-labels of this step, class indices of any shape."""
        counts = torch.bincount(prediction.flatten(), minlength=len(self.weight))
        self.weight = self.momentum * self.weight + (1 - self.momentum) * self._of(counts)
        return self.weight

    @staticmethod
    def _of(counts: Tensor) -> Tensor:
        rarity = ((counts.max() + _TINY) / (counts.float() + _TINY)).log()
        highest = rarity.max()
        weight = len(counts) * rarity / highest.clamp(min=torch.finfo(torch.float32).tiny)
        return torch.where(highest > 0, weight, torch.ones_like(weight))


class DiffDW(nn.Module):
    """w = C * u / max u,  u_c = ((unlearned_c + 1e-8) / (learned_c + 1e-8))^(1/5) * average of (1 - Dice_c).

    With d the change of a class's Dice from the step before, learned averages d log(Dice / Dice before) where d > 0,
    and unlearned where d <= 0: both are at least 0. All three are exponential averages over `window` steps.

    Args:
        num_classes: C.
        window: in steps; the averages' momentum is 1 - 1 / window.
        scaled: divide u by its maximum, as DHC does. A&D does not: w = C * u.
    """

    last: Tensor
    learned: Tensor
    unlearned: Tensor
    missed: Tensor

    def __init__(self, num_classes: int, window: int = 50, *, scaled: bool = True) -> None:
        super().__init__()
        self.momentum, self.scaled = 1 - 1 / window, scaled
        self.register_buffer("last", torch.full((num_classes,), _TINY))
        self.register_buffer("learned", torch.zeros(num_classes))
        self.register_buffer("unlearned", torch.zeros(num_classes))
        self.register_buffer("missed", torch.ones(num_classes))

    @torch.no_grad()
    def forward(self, prediction: Tensor, label: Tensor) -> Tensor:
        """The weights (C,) after this step's predictions on labelled patches; both are class indices."""
        dice = hard_dice(prediction, label, len(self.last))
        change = dice - self.last
        gain = change * (dice / self.last).log()
        self.learned = self._average(self.learned, torch.where(change > 0, gain, 0))
        self.unlearned = self._average(self.unlearned, torch.where(change <= 0, gain, 0))
        self.missed = self._average(self.missed, 1 - dice)
        self.last = dice
        difficulty = ((self.unlearned + _TINY) / (self.learned + _TINY)) ** 0.2 * self.missed
        if self.scaled:
            difficulty = difficulty / difficulty.max().clamp(min=_TINY)
        return len(dice) * difficulty

    def _average(self, former: Tensor, value: Tensor) -> Tensor:
        return self.momentum * former + (1 - self.momentum) * value
