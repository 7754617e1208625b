"""One step of training, written out; and all that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from classbalance_losses import WeightedCrossEntropyLoss
from examples.common.distributed import (
    all_sum,
    join_batch_norm,
    rank,
    world_size,
)
from examples.common.fourier import fourier_style
from examples.common.resumable import Resumable
from examples.common.sampling import seed_of
from examples.common.scenes.batches import Images
from examples.common.scenes.labels import IGNORE_INDEX
from examples.common.scenes.strong import StrongView
from examples.t2s_da.config import Config, TrainingConfig
from examples.t2s_da.mixing import class_masks, confident_shares, mixed_loss
from examples.t2s_da.model import Segmenter, build_student, build_teacher, resize, shrink
from examples.t2s_da.pull import Pull

_MIXED, _STYLE, _DRAWS, _STRONG = 11, 12, 13, 15  # streams of random numbers


class Mixed(NamedTuple):
    """Mixed images (N, 3, H, W), their labels and weights (N, H, W), and the mean r of all ranks."""

    image: Tensor
    label: Tensor
    weight: Tensor
    confident: Tensor


class Engine(Resumable):
    """Networks, losses and optimiser, and the step that changes them.

    A step: the student's cross-entropy on source images; on mixed images with the teacher's labels, weighed by its
    confidence; and the pull loss of source images in the target's style. Without target images (domain generalisation)
    the restyled source images, with the teacher's features and probabilities of them, stand for the target.

    **Ranks.** Each has its share of a step's images. Gradients, losses, BatchNorm's statistics, prototypes, confidences
    and percentiles are those of the joined batch. The pull loss's queries and negatives are drawn on each rank from its
    own pixels, and dropout's draws are each rank's own: so a step is that of one process without dropout, with
    "mse", and with queries enough to take every pixel; otherwise it is one of equal distribution of queries, whose
    negatives come from half the images.
    """

    def __init__(self, config: Config, num_classes: int, device: torch.device) -> None:
        self.config, self.device, self.step = config, device, 0
        self.student = build_student(config, num_classes).to(device)
        self.teacher = build_teacher(config, self.student).to(device)
        join_batch_norm(self.student, device)
        self.replica: nn.Module = self.student if world_size() == 1 else DistributedDataParallel(self.student)
        self.supervised = WeightedCrossEntropyLoss(ignore_index=IGNORE_INDEX, process_group="world").to(
            device
        )
        self.pull = Pull(config.pull, num_classes).to(device)
        self.strong = StrongView(config.self_training.strength)
        self.style = StrongView(config.translation.strength)
        self.optimizer = _optimizer(self.student, config.training)
        self.scheduler = _scheduler(self.optimizer, config.training)

    def advance(self, batch: Mapping[str, Images]) -> dict[str, Tensor]:
        """One step on "source" and, where training reads it, "target"; what to log, of all ranks, on the device."""
        config, parts = self.config, self.config.components
        source = batch["source"].to(self.device)
        target = batch["target"].to(self.device) if "target" in batch else None
        self.student.train()
        self.teacher.eval()
        with self.autocast():
            styled = self.restyle(source, target) if parts.pull else None
            other = styled if target is None else target.image
            seen, judged = (None, None) if other is None else self.judge(other)
            mixed = self.mix(source, target, judged) if parts.self_training else None
            keys = self._keys(source.image, other, seen) if parts.pull else None
            logits, embeddings = self.replica(
                [source.image] if mixed is None else [source.image, mixed.image],
                [] if styled is None else [styled],
            )
            found = [resize(x.float(), source.image.shape[-2:]) for x in logits]
            values = {"source": self.supervised(found[0], source.label)}
            loss = values["source"]
            if mixed is not None:
                values["target"] = mixed_loss(found[1], mixed.label, mixed.weight)
                values["confident"] = mixed.confident
                loss = loss + config.self_training.weight * values["target"]
            if keys is not None:
                values["pull"] = self._pull_loss(embeddings[0], source, *keys, judged)
                loss = loss + config.pull.weight * values["pull"]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.teacher.update_parameters(self.student)
        self.step += 1
        return {"loss": loss.detach()} | {name: value.detach() for name, value in values.items()}

    @torch.no_grad()
    def judge(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's features (N, width, h, w) of images (N, 3, H, W), and its logits (N, C, h, w)."""
        teacher: Segmenter = self.teacher.module  # type: ignore[assignment]
        features = teacher.features(images)
        return features, teacher.classify(features).float()

    @torch.no_grad()
    def mix(self, source: Images, target: Images, judged: Tensor) -> Mixed:
        """Target images with parts of source images; `judged` are the teacher's logits of the target, (N, C, h, w)."""
        rule = self.config.self_training
        assert source.label is not None
        confidence, pseudo_labels = resize(judged, target.image.shape[-2:]).softmax(1).max(1)
        share = confident_shares(confidence, rule.threshold, rule.confidence)
        pasted = class_masks(source.label, self._seeds(source, _MIXED))
        image = torch.where(pasted[:, None], source.image, target.image)
        label = torch.where(pasted, source.label, pseudo_labels)
        weight = torch.where(pasted, 1.0, share[:, None, None])
        view = self.strong(image, self._seeds(target, _STRONG))
        return Mixed(view, label, weight, all_sum(share.mean()) / world_size())

    @torch.no_grad()
    def restyle(self, source: Images, target: Images | None) -> Tensor:
        """Pseudo-target images: the source's, of which the labels hold, in another style."""
        rule = self.config.translation
        if rule.engine == "fda":
            assert target is not None  # the configuration refuses FDA without one
            return fourier_style(source.image, target.image, rule.beta, rule.window)
        if rule.engine == "photometric":
            return self.style(source.image, self._seeds(source, _STYLE))
        return source.image

    @torch.no_grad()
    def _keys(self, source: Tensor, target: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (N, D, h, w) of source and target; `seen` are the teacher's features of the target."""
        if self.config.pull.keys == "teacher":
            teacher: Segmenter = self.teacher.module  # type: ignore[assignment]
            return teacher.embed(teacher.features(source)), teacher.embed(seen)
        self.student.eval()
        keys = [self.student.embed(self.student.features(images)) for images in (source, target)]
        self.student.train()
        return keys[0], keys[1]

    def _pull_loss(
        self, queries: Tensor, source: Images, source_keys: Tensor, target_keys: Tensor, judged: Tensor
    ) -> Tensor:
        assert source.label is not None
        labels = shrink(source.label, queries.shape[-2:])
        draws = torch.Generator(self.device)
        draws.manual_seed(seed_of(self.config.training.seed, self.step * world_size() + rank(), _DRAWS))
        value: Tensor = self.pull(queries, labels, source_keys, labels, target_keys, judged.softmax(1), draws)
        return value

    def _seeds(self, images: Images, stream: int) -> Sequence[int]:
        """One for each image of the run, whatever rank it falls to."""
        return [seed_of(self.config.training.seed, position, stream) for position in images.positions]

    def autocast(self) -> AbstractContextManager[None]:
        """Mixed precision, where the configuration asks for it."""
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.training.amp == "bfloat16"
        )

    @property
    def evaluated(self) -> Segmenter:
        """The network that is scored."""
        network: Segmenter = self.student
        if self.config.training.evaluate == "teacher":
            network = self.teacher.module  # type: ignore[assignment]
        return network

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "student": self.student,
            "teacher": self.teacher,
            "pull": self.pull,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
        }


def _optimizer(student: Segmenter, recipe: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW, the encoder with a rate of its own."""
    encoder = list(student.vision.parameters())
    known = {id(p) for p in encoder}
    head = [p for p in student.parameters() if id(p) not in known]
    groups = [{"params": encoder, "lr": recipe.lr}, {"params": head, "lr": recipe.head_lr}]
    return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)


def _scheduler(
    optimizer: torch.optim.Optimizer, recipe: TrainingConfig
) -> torch.optim.lr_scheduler.LRScheduler:
    """The rates rise linearly for `warmup` steps under a polynomial that falls to 0 over all of them."""

    def factor(step: int) -> float:
        rise = min((step + 1) / (recipe.warmup + 1), 1.0)
        return rise * max(1 - step / recipe.iterations, 0.0) ** recipe.power

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
