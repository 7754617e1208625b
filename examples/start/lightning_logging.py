"""Lightning: DyCE + Dice in a LightningModule, and a callback that logs what they do to each class."""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

try:
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import CSVLogger
except ImportError as error:
    raise ImportError("This script needs Lightning: pip install lightning") from error

from classbalance_losses import DiceLoss, DyCELoss
from classbalance_losses.adapters.lightning import ClassBalanceLogger
from examples.common.streets import CLASSES, IGNORE_INDEX
from examples.start.data import streets
from examples.start.network import network


class Segmentation(pl.LightningModule):
    """Images (N, 3, H, W) to logits; the logger finds the loss among the attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network(3, len(CLASSES))
        self.criterion = DyCELoss(ignore_index=IGNORE_INDEX) + DiceLoss(ignore_index=IGNORE_INDEX)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Return the loss of a batch."""
        return self.criterion(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def main(steps: int = 90) -> list[dict[str, str]]:
    """Train, and print three rows of the log as columns: a class's loss, its weight in DyCE, the terms."""
    pl.seed_everything(0, verbose=False)
    data, every = streets(48, seed=0), steps // 3
    loader = DataLoader(data, batch_size=8, sampler=RandomSampler(data, num_samples=8 * steps))
    with tempfile.TemporaryDirectory() as folder:
        options = {"logger": CSVLogger(folder), "callbacks": [ClassBalanceLogger(CLASSES)]}
        options |= {"max_steps": steps, "log_every_n_steps": every, "accelerator": "cpu"}
        trainer = pl.Trainer(enable_checkpointing=False, **options)
        trainer.fit(Segmentation(), loader)
        log = list(csv.DictReader(Path(trainer.log_dir, "metrics.csv").read_text().splitlines()))
    for name in log[0]:
        print(f"{name:40}", *(f"{row[name]:>8.6}" for row in log))
    return log


if __name__ == "__main__":
    main()
