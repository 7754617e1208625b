"""One step of training both halves, and all that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from examples.common.recipe import apart, polynomial
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
        student = self.method.student
        encoder, others = apart(student.encoder, student, self.method.instances)
        groups: list[dict[str, Any]] = [
            {"params": encoder},
            {"params": others, "lr": recipe.lr * recipe.decoder_lr},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.scheduler = polynomial(self.optimizer, recipe.iterations, 1.0, recipe.warmup)

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

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"method": self.method, "optimizer": self.optimizer, "scheduler": self.scheduler}
