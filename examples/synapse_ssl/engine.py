"""One step of training, written out; and all that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from examples.common.resumable import Resumable
from examples.synapse_ssl.config import Config
from examples.synapse_ssl.data.batches import Patches
from examples.synapse_ssl.data.task import Task
from examples.synapse_ssl.methods import build_method


class Engine(Resumable):
    """Method and optimiser, the step that changes them, and the best weights so far."""

    def __init__(self, config: Config, class_counts: Tensor, device: torch.device) -> None:
        self.config, self.device, self.step = config, device, 0
        self.seconds = 0.0  # of training, over all sessions of the run
        self.best: dict[str, Any] = {}  # "step", "dsc" and the method's "weights" of the best validation
        self.method = build_method(config, class_counts).to(device)
        recipe = config.training
        self.optimizer = torch.optim.SGD(
            [p for p in self.method.parameters() if p.requires_grad],
            lr=recipe.lr,
            momentum=0.9,
            nesterov=True,
            weight_decay=recipe.weight_decay,
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.amp == "float16")

    def advance(self, batch: Mapping[str, Patches]) -> dict[str, Tensor]:
        """One step on the streams of a batch; returns what to log, on the device."""
        streams = {name: patches.to(self.device) for name, patches in batch.items()}
        loss, parts = self.method.train().loss(streams, self.step)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.method.after_step(self.step)
        self.step += 1
        return {"loss": loss.detach(), **parts}

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Logits (N, C, D, H, W) of images (N, 1, D, H, W), on the images' device."""
        return self.method.eval().predict(images.to(self.device)).to(images.device)

    def keep_if_best(self, dsc: float) -> None:
        """Remember the weights where their Dice on validation is higher than any before."""
        if not self.best or dsc > self.best["dsc"]:
            weights = {name: value.to("cpu", copy=True) for name, value in self.method.state_dict().items()}
            self.best = {"step": self.step, "dsc": dsc, "weights": weights}

    def take_best(self) -> None:
        """Put the best weights into the method, where validation has chosen any: for the test, not to train on."""
        if self.best:
            self.method.load_state_dict(self.best["weights"])

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on to the same bits."""
        return super().state_dict() | {"seconds": self.seconds, "best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: it belongs to another configuration.
        """
        super().load_state_dict(state)
        self.seconds, self.best = state["seconds"], state["best"]

    def _rate(self, step: int) -> float:
        """The polynomial of the epoch that a step is in, as a share of the first rate."""
        recipe = self.config.training
        epoch = min(step // recipe.steps_per_epoch, recipe.epochs)
        return float((1 - epoch / recipe.epochs) ** recipe.power)

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds, beside the best weights."""
        return {
            "method": self.method,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
        }


def class_counts(task: Task) -> Tensor:
    """Voxels of each class in the labelled volumes, (C,) int64.

    Raises:
        ValueError: there is no labelled volume.
    """
    if not task.labelled.names:
        raise ValueError("no volume is labelled: raise data.budget")
    counts = torch.zeros(len(task.classes), dtype=torch.long)
    for index in range(len(task.labelled.names)):
        counts += torch.bincount(task.labelled.label(index).flatten(), minlength=len(task.classes))
    return counts
