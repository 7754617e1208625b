"""One step of training the three heads, and all that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from examples.common.resumable import Resumable
from examples.uda_gbw.data import Classes
from examples.uda_gbw.panoptic.config import Config
from examples.uda_gbw.panoptic.data import Batch, PanopticStreets, Sample
from examples.uda_gbw.panoptic.losses import PanopticLoss
from examples.uda_gbw.panoptic.networks import Outputs, PanopticNetwork
from examples.uda_gbw.panoptic.scores import score


class Engine(Resumable):
    """Network, loss and optimiser, of one process."""

    def __init__(self, config: Config, classes: Classes, device: torch.device) -> None:
        self.config, self.device, self.step = config, device, 0
        recipe = config.training
        self.network = PanopticNetwork(config.model, len(classes.names)).to(device)
        self.loss = PanopticLoss(config.weighting, classes, config.instance).to(device)
        encoder = list(self.network.segmenter.encoder.parameters())
        known = {id(p) for p in encoder}
        others = [p for p in self.network.parameters() if id(p) not in known]
        groups: list[dict[str, Any]] = [
            {"params": encoder},
            {"params": others, "lr": recipe.lr * recipe.decoder_lr},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)

    def advance(self, batch: Mapping[str, Batch]) -> dict[str, Tensor]:
        """One step; returns what to log, on the device."""
        source = batch["source"].to(self.device)
        self.optimizer.zero_grad()
        values = self.loss(self.network.train()(source.image), source)
        values["loss"].backward()
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1
        return {name: value.detach() for name, value in values.items()}

    def class_weights(self) -> list[float]:
        """The class weights that the semantic loss last used."""
        weights: list[float] = self.loss.semantic.class_weight.tolist()
        return weights

    @torch.no_grad()
    def predict(self, sample: Sample) -> Outputs:
        """The outputs for one street, on the engine's device; its labels are not read."""
        outputs: Outputs = self.network(sample[0][None].to(self.device))
        return outputs

    def evaluate(self, streets: PanopticStreets, *, progress: bool = False) -> dict[str, Any]:
        """The scores of a test set."""
        self.network.eval()
        return score(self.predict, streets, self.config.instance, progress=progress)

    def _rate(self, step: int) -> float:
        """The share of the rate in a step, from 0: linear up, and linear down over all steps."""
        recipe = self.config.training
        return min((step + 1) / (recipe.warmup + 1), 1.0) * max(1 - step / recipe.iterations, 0.0)

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "network": self.network,
            "criterion": self.loss,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
        }
