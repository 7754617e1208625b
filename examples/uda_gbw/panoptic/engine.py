"""One step of training both halves, and all that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from examples.common.resumable import Resumable
from examples.common.scenes.batches import Images
from examples.common.scenes.task import Task
from examples.uda_gbw.data import Classes
from examples.uda_gbw.panoptic.config import Config
from examples.uda_gbw.panoptic.methods import build_method
from examples.uda_gbw.panoptic.networks import Outputs, outputs_of
from examples.uda_gbw.panoptic.scores import score


class Engine(Resumable):
    """A method and its optimiser, of one process."""

    def __init__(self, config: Config, classes: Classes, device: torch.device) -> None:
        self.config, self.device, self.step = config, device, 0
        recipe = config.training
        self.method = build_method(config, classes).to(device)
        encoder = list(self.method.student.encoder.parameters())
        known = {id(p) for p in encoder}
        halves = (self.method.student, self.method.instances)
        others = [p for half in halves for p in half.parameters() if id(p) not in known]
        groups: list[dict[str, Any]] = [
            {"params": encoder},
            {"params": others, "lr": recipe.lr * recipe.decoder_lr},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)

    def advance(self, batch: Mapping[str, Images]) -> dict[str, Tensor]:
        """One step; returns what to log, on the device."""
        streams = {name: images.to(self.device) for name, images in batch.items()}
        self.optimizer.zero_grad()
        logged = self.method.train().step(streams["source"], streams.get("target"), self.step)
        self.optimizer.step()
        self.scheduler.step()
        self.method.after_step()
        self.step += 1
        return logged

    def class_weights(self) -> dict[str, list[float]]:
        """The class weights that each semantic loss last used."""
        return {name: loss.class_weight.tolist() for name, loss in self.method.losses.items()}

    @torch.no_grad()
    def predict(self, image: Tensor) -> Outputs:
        """The outputs for one image (3, H, W), on the engine's device."""
        return outputs_of(self.method.student, self.method.instances, image[None].to(self.device))

    def evaluate(self, task: Task, *, progress: bool = False) -> dict[str, dict[str, Any]]:
        """The scores of each test set."""
        self.method.eval()
        return {
            name: score(
                lambda image, _: self.predict(image),
                images,
                self.config.categories,
                self.config.instance,
                progress=progress,
            )
            for name, images in task.tests.items()
        }

    def _rate(self, step: int) -> float:
        """The share of the rate in a step, from 0: linear up, and linear down over all steps."""
        recipe = self.config.training
        return min((step + 1) / (recipe.warmup + 1), 1.0) * max(1 - step / recipe.iterations, 0.0)

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"method": self.method, "optimizer": self.optimizer, "scheduler": self.scheduler}
