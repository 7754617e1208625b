"""One step of training, whatever the method; and all that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from examples.common.distributed import (
    all_sum,
    average_gradients,
    join_batch_norm,
    world_size,
)
from examples.common.recipe import apart, polynomial
from examples.common.resumable import Resumable
from examples.common.scenes.batches import Images
from examples.common.scenes.labels import IGNORE_INDEX
from examples.common.scenes.task import Task
from examples.common.scoring import confusion_of, sliding_window
from examples.uda_gbw.config import Config
from examples.uda_gbw.data import Classes
from examples.uda_gbw.methods import build_method
from examples.uda_gbw.scores import entry_of


class Engine(Resumable):
    """A method and its optimisers, and the step that changes them.

    Several ranks have each a share of a step's images, and take the mean of their gradients. Losses, BatchNorm's
    statistics, class weights and confidences are those of the joined batch, so that a step is that of one process;
    dropout's draws are each rank's own.
    """

    def __init__(self, config: Config, classes: Classes, device: torch.device) -> None:
        self.config, self.device, self.step = config, device, 0
        self.method = build_method(config, classes).to(device)
        student, recipe = self.method.student, config.training
        join_batch_norm(student, device)
        encoder, others = apart(student.encoder, student)
        groups = [{"params": encoder}, {"params": others, "lr": recipe.lr * recipe.decoder_lr}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.scheduler = polynomial(self.optimizer, recipe.iterations, recipe.power, recipe.warmup)
        self.critic: torch.optim.Adam | None = None
        self.critic_scheduler: torch.optim.lr_scheduler.LambdaLR | None = None
        judges = list(self.method.discriminators.parameters())
        if judges:  # betas are AdaptSegNet's, and ADVENT's; the rate falls as the network's
            self.critic = torch.optim.Adam(judges, lr=config.adversarial.lr, betas=(0.9, 0.99))
            self.critic_scheduler = polynomial(self.critic, recipe.iterations, recipe.power, warmup=0)

    def advance(self, batch: Mapping[str, Images]) -> dict[str, Tensor]:
        """One step on the streams of a batch, this rank's share; returns what to log, of all ranks, on the device."""
        streams = {name: images.to(self.device) for name, images in batch.items()}
        optimizers = [self.optimizer] if self.critic is None else [self.optimizer, self.critic]
        for optimizer in optimizers:
            optimizer.zero_grad()
        logged = self.method.train().step(streams["source"], streams.get("target"), self.step)
        for optimizer in optimizers:
            average_gradients(p for group in optimizer.param_groups for p in group["params"])
            optimizer.step()
        self.scheduler.step()
        if self.critic_scheduler is not None:
            self.critic_scheduler.step()
        self.method.after_step()
        self.step += 1
        means = all_sum(torch.stack(list(logged.values()))) / world_size()
        return dict(zip(logged, means, strict=True))

    def class_weights(self) -> dict[str, list[float]]:
        """The class weights that each loss last used."""
        return {name: loss.class_weight.tolist() for name, loss in self.method.losses.items()}

    @torch.no_grad()
    def predict(self, name: str, image: Tensor) -> Tensor:
        """Logits (C, H, W) of one image (3, H, W), on the engine's device."""
        recipe = self.config.training
        network = self.method.predictor()
        logits = sliding_window(network, image[None].to(self.device), recipe.window, recipe.stride)
        return logits[0].float()

    def evaluate(self, task: Task, *, progress: bool = False) -> dict[str, dict[str, Any]]:
        """Score the network on each test set of the task; where there are several ranks, all must call this."""
        self.method.eval()
        number, device = len(task.classes), self.device
        return {
            name: entry_of(
                confusion_of(self.predict, domain, number, IGNORE_INDEX, device, progress=progress),
                task.means,
            )
            for name, domain in task.tests.items()
        }

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        parts: dict[str, Any] = {
            "method": self.method,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "critic": self.critic,
            "critic_scheduler": self.critic_scheduler,
        }
        return {name: part for name, part in parts.items() if part is not None}
