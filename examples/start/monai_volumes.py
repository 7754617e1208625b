"""MONAI: its U-Net on volumes of 13 organs, with its own Dice + cross-entropy, and with DyCE + Dice in one pass."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import RandomSampler

try:
    from monai.data import DataLoader
    from monai.losses import DiceCELoss
    from monai.networks.nets import UNet
except ImportError as error:
    raise ImportError("This script needs MONAI: pip install monai") from error

from classbalance_losses import DiceLoss, DyCELoss
from classbalance_losses.adapters.monai import MonaiLoss
from examples.common.evaluation import evaluate
from examples.common.organs import CLASSES
from examples.start.data import organs
from examples.start.table import print_table

LOSS_FUNCTIONS = {
    "CE + Dice": DiceCELoss(to_onehot_y=True, softmax=True, batch=True),
    "DyCE + Dice": MonaiLoss(DyCELoss() + DiceLoss()),
}


def train(loss_function: nn.Module, steps: int) -> nn.Module:
    """Take steps of AdamW on batches of four volumes."""
    torch.manual_seed(0)
    data = organs(16, seed=0)
    loader = DataLoader(data, batch_size=4, sampler=RandomSampler(data, num_samples=4 * steps))
    model = UNet(3, 1, len(CLASSES), channels=(8, 16, 32), strides=(2, 2), num_res_units=1)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-2, total_steps=steps)
    for image, label in loader:  # (B, 1, D, H, W) and, as MONAI has labels, (B, 1, D, H, W)
        optimizer.zero_grad()
        loss_function(model(image), label[:, None]).backward()
        optimizer.step()
        schedule.step()
    return model


def main(steps: int = 60) -> dict[str, tuple[float, ...]]:
    """Train with each loss, and print each organ's Dice over volumes that no training saw."""
    dice = {}
    for name, loss_function in LOSS_FUNCTIONS.items():
        model = train(loss_function, steps)
        scores = evaluate(model, organs(8, seed=1), num_classes=len(CLASSES), ignore_index=255)
        dice[name] = tuple(2 * iou / (1 + iou) for iou in scores.iou)
    print_table(f"Dice after {steps} steps", dice, CLASSES, organs(16, seed=0).tensors[1])
    return dice


if __name__ == "__main__":
    main()
