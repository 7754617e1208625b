"""One step of training, written out; and all that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from examples.common.distributed import (
    all_sum,
    join_batch_norm,
    world_size,
)
from examples.common.resumable import Resumable
from examples.common.sampling import seed_of
from examples.common.scenes.batches import Images
from examples.common.scenes.labels import IGNORE_INDEX
from examples.common.scenes.strong import StrongView
from examples.common.scenes.task import Task
from examples.semidavil.config import Config
from examples.semidavil.losses import ConsistencyLoss, build_loss
from examples.semidavil.model.cache import FeatureCache
from examples.semidavil.model.captions import DomainCaptions, build_captioner, class_texts
from examples.semidavil.model.describe import Describer
from examples.semidavil.model.network import Networks, build_networks
from examples.semidavil.recipe import build_optimizer, build_scheduler, supervision

_STRONG = 15  # the stream of random numbers for the strong views
_AMP = {"off": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Engine(Resumable):
    """Networks, losses and optimiser, and the step that changes them.

    **Ranks.** Each has its share of a step's images. Gradients, losses, BatchNorm's statistics and the counts in the
    losses are those of the joined batch, so that a step is that of one process; dropout's draws are each rank's own.

    **Accumulation.** With `training.accumulation = k` the batch comes in k pieces, one after another, and the optimiser
    steps once. Of each piece alone are then: DyCE's mining threshold and class counts, WCE's running weights (which
    count the pieces before it), BatchNorm's statistics (its running ones move k times), and the number of confident
    pixels that equation 4 may divide by. The supervised losses of the pieces are weighed by their share of the step's
    labelled pixels, those of equation 4 equally. So CE, FL, DCE and DFL, which are means over pixels, are what they are
    without accumulation, and so is equation 4 with `normalize` "images" or "pixels". The teacher, the learning rate,
    captions, crops and strong views do not depend on k.
    """

    def __init__(self, config: Config, task: Task, device: torch.device, kept: Path) -> None:
        """`kept` is the folder of what runs share; see `train.train`."""
        self.config, self.device, self.step = config, device, 0
        self.networks = build_networks(config, len(task.classes)).to(device)
        self.networks.cache = _cache(config, self.networks, kept)
        join_batch_norm(self.networks.student, device)
        student = self.networks.student
        self.replica: nn.Module = student if world_size() == 1 else DistributedDataParallel(student)
        model, rule = config.model, config.consistency
        captioner = build_captioner(model.captions, task.classes, model.scene, model.caption_file)
        domain = DomainCaptions(task.classes, model.scene)
        fixed = class_texts(task.classes) if model.guidance == "vlga" else ()
        self.describe = Describer(self.networks, captioner, domain, fixed)
        name, options = supervision(config, task, kept)
        self.supervised = build_loss(name, options, IGNORE_INDEX).to(device)
        self.strong = StrongView(rule.strength) if rule.strength else None
        self.consistency = ConsistencyLoss(rule.threshold, rule.confidence, rule.normalize)
        recipe = config.training
        self.optimizer = build_optimizer(self.networks.student, recipe)
        epoch = -(-len(task.target.names) // config.data.batch_size)  # steps that see every target image once
        self.scheduler = build_scheduler(self.optimizer, recipe, epoch)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.amp == "float16")

    def advance(self, batch: Mapping[str, Images]) -> dict[str, Tensor]:
        """One step on the streams of a batch, this rank's share; returns what to log, of all ranks, on the device."""
        config, student, teacher = self.config, self.networks.student, self.networks.teacher
        pieces = _pieces({name: x.to(self.device) for name, x in batch.items()}, config.training.accumulation)
        logged: dict[str, Tensor] = {}
        student.train()
        teacher.eval()
        self.optimizer.zero_grad()
        for number, (piece, labelled) in enumerate(zip(pieces, _labelled_shares(pieces), strict=True)):
            with self._exchanging(last=number == len(pieces) - 1):
                with self.autocast():
                    values = self._losses(piece)
                    loss = labelled * values["supervised"]
                    if "consistency" in values:
                        loss = loss + config.consistency.weight / len(pieces) * values["consistency"]
                self.scaler.scale(loss).backward()
            part = {name: value.detach() / len(pieces) for name, value in values.items()}
            part |= {"loss": loss.detach(), "supervised": labelled * values["supervised"].detach()}
            logged = {name: logged.get(name, 0) + part[name] for name in ("loss", *values)}
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        teacher.update_parameters(student)
        self.step += 1
        return logged

    def _losses(self, streams: Mapping[str, Images]) -> dict[str, Tensor]:
        """The supervised loss of a piece; the consistency loss and the share of confident pixels where it is on."""
        weak = torch.cat([images.image for images in streams.values()])
        names = [name for images in streams.values() for name in images.names]
        inputs, size = self.networks.inputs(weak), (weak.shape[-2], weak.shape[-1])
        text = self.describe(names, inputs, size, streams["source"].label if "source" in streams else None)
        labels = torch.cat([x.label for x in streams.values() if x.label is not None])
        known, new = slice(0, len(labels)), slice(len(labels), None)  # source and labelled target come first
        if "unlabelled" not in streams:
            return {"supervised": self.supervised(self.replica(inputs, text, size), labels)}
        with torch.no_grad():
            wanted = self.networks.teacher(
                [x[new] for x in inputs], None if text is None else text[new], size
            )
        if self.strong is not None:
            view = self.networks.inputs(self.strong(weak[new], self._seeds(streams["unlabelled"])))
            inputs = [torch.cat([a[known], b]) for a, b in zip(inputs, view, strict=True)]
        logits = self.replica(inputs, text, size)
        agreement, confident = self.consistency(logits[new], wanted)
        supervised = self.supervised(logits[known], labels)
        return {"supervised": supervised, "confident": confident, "consistency": agreement}

    def _seeds(self, images: Images) -> list[int]:
        """Of the strong views: one for each image of the run, whatever rank and piece it falls to."""
        return [seed_of(self.config.training.seed, position, _STRONG) for position in images.positions]

    def _exchanging(self, *, last: bool) -> AbstractContextManager[None]:
        """The ranks take the mean of their gradients once, after the last piece."""
        if last or not isinstance(self.replica, DistributedDataParallel):
            return nullcontext()
        return self.replica.no_sync()

    def autocast(self) -> AbstractContextManager[None]:
        """Mixed precision, where the configuration asks for it."""
        amp = self.config.training.amp
        return torch.autocast(self.device.type, _AMP[amp], enabled=amp != "off")

    @property
    def evaluated(self) -> nn.Module:
        """The network that is scored."""
        teacher = self.config.training.evaluate == "teacher"
        return self.networks.teacher if teacher else self.networks.student

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "student": self.networks.student,
            "teacher": self.networks.teacher,
            "loss": self.supervised,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
        }


def _pieces(batch: Mapping[str, Images], number: int) -> list[dict[str, Images]]:
    """The pieces of a batch, which lie one after another in each stream."""

    def part(images: Images, piece: int) -> Images:
        length = len(images.image) // number
        return images[piece * length : (piece + 1) * length]

    return [{name: part(images, piece) for name, images in batch.items()} for piece in range(number)]


def _cache(config: Config, networks: Networks, kept: Path) -> FeatureCache | None:
    if config.data.cache_features == "off" or networks.vision is None:
        return None
    name = f"{type(networks.vision).__name__} {config.model.dense}"
    return FeatureCache(networks.vision, name, kept if config.data.cache_features == "disk" else None)


def _labelled_shares(pieces: Sequence[Mapping[str, Images]]) -> Sequence[float | Tensor]:
    """Of each piece: its share of the labelled pixels of all pieces, over all ranks."""
    if len(pieces) == 1:
        return [1.0]
    labels = [[images.label for images in piece.values() if images.label is not None] for piece in pieces]
    pixels = all_sum(torch.stack([torch.cat(piece).ne(IGNORE_INDEX).sum() for piece in labels]))
    return list(pixels / pixels.sum().clamp(min=1))
