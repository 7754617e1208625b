"""How one step of the real Trainer moves a bias, in one process or, under torchrun, in two."""

from __future__ import annotations

import os
import sys

import torch
from test_adapters_huggingface import trainer

from classbalance_losses import DiceLoss, DyCELoss, FocalLoss

LOSSES = {
    "focal": lambda: FocalLoss(gamma=2.0, upsample="linear"),
    "focal-world": lambda: FocalLoss(gamma=2.0, upsample="linear", process_group="world"),
    "dyce-world": lambda: DyCELoss(upsample="linear", process_group="world"),
    "sum-world": lambda: (
        FocalLoss(upsample="linear", process_group="world")
        + DiceLoss(upsample="linear", process_group="world")
    ),
}


def steps(folder: str, batch: int) -> dict[str, torch.Tensor]:
    """How far a step of SGD moves the classifier's bias, with each of the losses, over the same four images."""
    moved = {}
    for name, make in LOSSES.items():
        run = trainer(
            folder, make(), max_steps=1, optim="sgd", max_grad_norm=0.0, per_device_train_batch_size=batch
        )
        labels = run.train_dataset.labels
        labels[labels == 255] = -100
        run.model.eval()
        run.model.train = lambda mode=True, model=run.model: model  # batch norm would tell one batch from two
        bias = run.model.decode_head.classifier.bias
        before = bias.detach().clone()
        run.train()
        moved[name] = bias.detach() - before
    return moved


if __name__ == "__main__":
    torch.set_num_threads(1)
    result = steps(sys.argv[1], batch=2)
    torch.save(result, f"{sys.argv[1]}/{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()
