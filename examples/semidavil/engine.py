"""One step of training, written out; and all that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from examples.semidavil.config import Config, TrainingConfig
from examples.semidavil.data.batches import Images
from examples.semidavil.data.labels import IGNORE_INDEX
from examples.semidavil.data.sampling import seed_of
from examples.semidavil.data.strong import StrongView
from examples.semidavil.data.task import Task
from examples.semidavil.losses import ConsistencyLoss, build_loss
from examples.semidavil.model.captions import DomainCaptions, build_captioner
from examples.semidavil.model.describe import Describer
from examples.semidavil.model.network import build_networks

_STRONG = 15  # the stream of random numbers for the strong views
_AMP = {"off": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Engine:
    """Networks, losses and optimiser, and the step that changes them."""

    def __init__(self, config: Config, task: Task, device: torch.device) -> None:
        self.config, self.device, self.step = config, device, 0
        self.networks = build_networks(config, len(task.classes)).to(device)
        model, rule = config.model, config.consistency
        captioner = build_captioner(model.captions, task.classes, model.scene, model.caption_file)
        self.describe = Describer(self.networks, captioner, DomainCaptions(task.classes, model.scene))
        name = config.loss if config.components.dyce else "CE"
        options = config.loss_options if name == config.loss else {}
        self.supervised = build_loss(name, options, IGNORE_INDEX).to(device)
        self.strong = StrongView(rule.strength)
        self.consistency = ConsistencyLoss(rule.threshold, rule.confidence, rule.normalize)
        recipe = config.training
        self.optimizer = torch.optim.AdamW(
            self.networks.student.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay
        )
        self.scheduler = _scheduler(self.optimizer, recipe)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.amp == "float16")

    def advance(self, batch: Mapping[str, Images]) -> dict[str, Tensor]:
        """One step on the streams of a batch; returns what to log, on the device."""
        streams = {name: images.to(self.device) for name, images in batch.items()}
        student, teacher = self.networks.student.train(), self.networks.teacher.eval()
        with self.autocast():
            weak = torch.cat([images.image for images in streams.values()])
            names = [name for images in streams.values() for name in images.names]
            inputs, size = self.networks.inputs(weak), (weak.shape[-2], weak.shape[-1])
            text = self.describe(names, inputs, size)
            labels = torch.cat([x.label for x in streams.values() if x.label is not None])
            known = slice(0, len(labels))  # source and labelled target come first
            logged = {}
            if "unlabelled" in streams:
                new = slice(len(labels), None)
                with torch.no_grad():
                    wanted = teacher([x[new] for x in inputs], None if text is None else text[new], size)
                view = self.strong(weak[new], self._seeds(weak[new]))
                inputs = [
                    torch.cat([a[known], b]) for a, b in zip(inputs, self.networks.inputs(view), strict=True)
                ]
                logits = student(inputs, text, size)
                agreement, logged["confident"] = self.consistency(logits[new], wanted)
                logged["consistency"] = agreement.detach()
            else:
                logits, agreement = student(inputs, text, size), torch.zeros((), device=self.device)
            supervised = self.supervised(logits[known], labels)
            loss = supervised + self.config.consistency.weight * agreement
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        teacher.update_parameters(student)
        self.step += 1
        return {"loss": loss.detach(), "supervised": supervised.detach(), **logged}

    def _seeds(self, images: Tensor) -> list[int]:
        """Of the strong views: one for each image of the run."""
        first = self.step * len(images)
        return [seed_of(self.config.training.seed, first + i, _STRONG) for i in range(len(images))]

    def autocast(self) -> AbstractContextManager[None]:
        """Mixed precision, where the configuration asks for it."""
        amp = self.config.training.amp
        return torch.autocast(self.device.type, _AMP[amp], enabled=amp != "off")

    @property
    def evaluated(self) -> nn.Module:
        """The network that is scored."""
        teacher = self.config.training.evaluate == "teacher"
        return self.networks.teacher if teacher else self.networks.student

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on to the same bits."""
        cuda = torch.cuda.get_rng_state_all() if self.device.type == "cuda" else []
        return {
            "config": self.config.as_dict(),
            "step": self.step,
            **{name: part.state_dict() for name, part in self._parts().items()},
            "random_state": torch.get_rng_state(),
            "cuda_random_states": cuda,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: it belongs to another configuration.
        """
        if state["config"] != self.config.as_dict():
            raise ValueError(f"the checkpoint has another configuration, {state['config']}")
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.step = state["step"]
        torch.set_rng_state(state["random_state"])
        if state["cuda_random_states"] and self.device.type == "cuda":
            torch.cuda.set_rng_state_all(state["cuda_random_states"])

    def _parts(self) -> dict[str, Any]:
        return {
            "student": self.networks.student,
            "teacher": self.networks.teacher,
            "loss": self.supervised,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
        }


def _scheduler(
    optimizer: torch.optim.Optimizer, recipe: TrainingConfig
) -> torch.optim.lr_scheduler.LRScheduler:
    """The paper's rate decays "with factor 0.9", read as the usual polynomial; the released code keeps it constant."""
    if recipe.schedule == "one_cycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=recipe.iterations + 1)
    if recipe.schedule == "poly":
        return torch.optim.lr_scheduler.PolynomialLR(optimizer, recipe.iterations, recipe.power)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
