"""One step of training, written out; and all that a checkpoint holds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from classbalance_losses import WeightedCrossEntropyLoss
from examples.common.decoders import resized
from examples.common.distributed import (
    all_sum,
    join_batch_norm,
    rank,
    world_size,
)
from examples.common.mixing import class_masks, visible_blocks
from examples.common.recipe import apart, polynomial
from examples.common.resumable import Resumable
from examples.common.sampling import generator, seed_of
from examples.common.scenes.batches import Images
from examples.common.scenes.labels import IGNORE_INDEX
from examples.common.scenes.strong import StrongView
from examples.common.things import feature_distance, thing_cells, thing_classes
from examples.common.windows import Box, draw_box
from examples.t2s_da.build import build_student, build_teacher
from examples.t2s_da.config import Config, TrainingConfig
from examples.t2s_da.mixing import Mixed, confident_shares, mixed_loss
from examples.t2s_da.model import Judged, Outputs, Segmenter, shrink
from examples.t2s_da.pull import Labelled, Pull
from examples.t2s_da.reweighting import ClassWeights
from examples.t2s_da.scene import Scene, SceneMaker

# Streams of random numbers.
_BOX, _BLOCKS, _MASKED_VIEW, _MIXED, _DRAWS, _DROPOUT, _STRONG = 5, 6, 7, 11, 13, 14, 15


class Keys(NamedTuple):
    """The teacher's side of the pull loss: whose class means are k+, and what negatives are drawn from."""

    prototypes_of: Labelled
    source: Labelled
    target: Labelled | None
    confidence: Tensor | None


class Engine(Resumable):
    """Networks, losses and optimiser, and the step that changes them.

    A step: the student's cross-entropy on source images; on mixed images with the teacher's labels, weighed by its
    confidence; DAFormer's feature distance; and the pull loss of source images in the target's style. Without target
    images (domain generalisation) the first and the last are left.

    **Ranks.** Each has its share of a step's images. Gradients, losses, BatchNorm's statistics, prototypes, confidences
    and percentiles are those of the joined batch. The pull loss's queries and negatives are drawn on each rank from its
    own pixels, and dropout's draws are each rank's own: so a step is that of one process without dropout, with
    "mse", and with queries enough to take every pixel; otherwise it is one of equal distribution of queries, whose
    negatives come from half the images.

    **Draws** of crops, styles, mixtures, queries, negatives and dropout are functions of the seed and the step, so that
    two configurations that differ in a switch have the same ones wherever both draw.
    """

    def __init__(self, config: Config, classes: Sequence[str], device: torch.device) -> None:
        self.config, self.device, self.step = config, device, 0
        self.classes = tuple(classes)
        self.scene = SceneMaker(config)
        self.student = build_student(config, len(classes)).to(device)
        self.teacher = build_teacher(config, self.student).to(device)
        self.first: nn.Module | None = None
        if config.components.feature_distance:
            self.first = copy.deepcopy(self.student.vision).eval().requires_grad_(False)
            self.things = thing_classes(classes, config.feature_distance.classes)
        join_batch_norm(self.student, device)
        self.replica: nn.Module = self.student if world_size() == 1 else DistributedDataParallel(self.student)
        self.supervised = WeightedCrossEntropyLoss(ignore_index=IGNORE_INDEX, process_group="world").to(
            device
        )
        self.weights = ClassWeights(config.reweighting, len(classes)).to(device)
        self.pull = Pull(config.pull, len(classes))
        self.factors = {
            "source": 1.0,
            "target": config.self_training.weight,
            "masked": config.mic.weight,
            "feature_distance": config.feature_distance.weight,
            "pull": config.pull.weight,
        }
        self.strong = StrongView(config.self_training.strength)
        self.optimizer = _optimizer(self.student, config.training)
        self.scheduler = _scheduler(self.optimizer, config.training)

    def advance(self, batch: Mapping[str, Images]) -> dict[str, Tensor]:
        """One step on "source" and, where training reads them, "target" and "translated"; what to log, of all ranks."""
        config = self.config
        torch.manual_seed(seed_of(config.training.seed, self._draw(), _DROPOUT))
        scene = self.scene({name: images.to(self.device) for name, images in batch.items()})
        self.student.train()
        self.teacher.eval()
        with self.autocast():
            judged = None if scene.target is None else self.judge(scene.target.image)
            weights = self._class_weights(scene, judged)
            keys = self._keys(scene, judged) if config.components.pull else None
            shown, box = self._shown(scene), self._box(scene)
            studied = self._studied(scene, judged) if config.components.self_training else {}
            found = self.replica(
                [shown.image, *(one.image for one in studied.values())],
                [] if keys is None else [self._images(scene, config.pull.queries_from)],
                box,
            )
            supervised = partial(_supervised, self.supervised, shown)
            values = {"source": self._at_both(found, 0, supervised, shown.image.shape[-2:], box)}
            if self.first is not None:
                values["feature_distance"] = self._distance(found.coarsest, shown)
            for number, (name, one) in enumerate(studied.items(), start=1):
                of_one = partial(_studied_loss, one, weights.get(name))
                values[name] = self._at_both(found, number, of_one, shown.image.shape[-2:], box)
            if keys is not None:
                values["pull"] = self._pull_loss(found.embeddings[0], scene, judged, keys, weights["pull"])
            loss = torch.stack([self.factors[name] * value for name, value in values.items()]).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.teacher.update_parameters(self.student)
        self.step += 1
        logged = {"loss": loss.detach()} | {name: value.detach() for name, value in values.items()}
        return logged | {"confident": studied["target"].confident} if studied else logged

    def _shown(self, scene: Scene) -> Images:
        """The labelled images of the cross-entropy: the source's, or the pseudo-target's."""
        if self.config.components.cross_entropy == "source":
            return scene.source
        return replace(scene.source, image=self._images(scene, "pseudo_target"))

    def _class_weights(self, scene: Scene, judged: Judged | None) -> dict[str, Tensor]:
        """Class weights (C,) by loss: of the pull loss they add up to 1, of the target's their mean is 1."""
        own, rule = self.weights.class_weight, self.config.reweighting
        if scene.target is not None and judged is not None:
            own = self.weights.update(_probabilities(judged, scene.target))
        even = torch.full_like(own, 1 / len(own))
        if rule.of == "target":
            return {"target": own * len(own), "pull": even}
        return {"pull": own if rule.of == "pull" else even}

    @torch.no_grad()
    def judge(self, images: Tensor) -> Judged:
        """What the teacher sees in images (N, 3, H, W), and its logits."""
        return _teacher(self).judge(images)

    def _studied(self, scene: Scene, judged: Judged | None) -> dict[str, Mixed]:
        """What is learnt with the teacher's labels, by the name of its loss: mixed images, with MIC masked ones too."""
        assert judged is not None  # self-training reads the target
        found = {"target": self.mix(scene, judged)}
        return found | {"masked": self.mask(scene, judged)} if self.config.mic.enabled else found

    @torch.no_grad()
    def mix(self, scene: Scene, judged: Judged) -> Mixed:
        """Target images with parts of source images; `judged` is what the teacher says of the target."""
        source, target = scene.source, scene.target
        assert source.label is not None
        assert target is not None
        pseudo_labels, trust, sure = self._pseudo_labels(target, judged)
        pasted = class_masks(source.label, self._seeds(source, _MIXED))
        image = torch.where(pasted[:, None], source.image, target.image)
        label = torch.where(pasted, source.label, pseudo_labels)
        weight = torch.where(pasted, 1.0, trust)
        view = self.strong(image, self._seeds(target, _STRONG))
        return Mixed(view, label, weight, sure)

    @torch.no_grad()
    def mask(self, scene: Scene, judged: Judged) -> Mixed:
        """MIC's: target images of which blocks are hidden, with the labels of all of their pixels."""
        target, rule = scene.target, self.config.mic
        assert target is not None
        pseudo_labels, trust, sure = self._pseudo_labels(target, judged)
        size = target.image.shape[-2:]
        visible = visible_blocks(size, rule.block, rule.ratio, self._seeds(target, _BLOCKS))
        view = self.strong(target.image, self._seeds(target, _MASKED_VIEW)) * visible.to(self.device)
        return Mixed(view, pseudo_labels, trust, sure)

    def _pseudo_labels(self, target: Images, judged: Judged) -> tuple[Tensor, Tensor, Tensor]:
        """The teacher's labels, and r of their images, equation 3, 0 in rows that are left out: both (N, H, W).

        And the mean of r over all ranks.
        """
        rule = self.config.self_training
        confidence, labels = _probabilities(judged, target).max(1)
        share = confident_shares(confidence, rule.threshold, rule.confidence)
        trust = share[:, None, None].expand(labels.shape).clone()
        trust[:, : rule.ignore_top] = 0
        trust[:, labels.shape[1] - rule.ignore_bottom :] = 0
        return labels, trust, all_sum(share.mean()) / world_size()

    def _box(self, scene: Scene) -> Box | None:
        """HRDA's window of this step, the same on all ranks."""
        if not self.config.hrda.enabled:
            return None
        height, width = scene.source.image.shape[-2:]
        return draw_box(height, width, generator(self.config.training.seed, self.step, _BOX))

    def _at_both(
        self,
        found: Outputs,
        number: int,
        loss: Callable[[Tensor, Any], Tensor],
        size: Sequence[int],
        box: Box | None,
    ) -> Tensor:
        """A loss of the logits of a pass; of two resolutions, of the fused ones and of the window's."""
        value = loss(resized(found.logits[number].float(), size), ...)
        if box is None:
            return value
        share = self.config.hrda.detail_weight
        return (1 - share) * value + share * loss(found.details[number].float(), box.place)

    @torch.no_grad()
    def _keys(self, scene: Scene, judged: Judged | None) -> Keys:
        """Prototypes are of one place, negatives of source and target, whatever that place is."""
        rule = self.config.pull
        network, student = _teacher(self), rule.keys == "student"
        if student:
            network = self.student.eval()
        source = network.embed(scene.source.image)
        size = source.shape[-2:]
        known = {"source": Labelled(source, self._labels("source", scene, judged, size))}
        target, confidence = None, None
        if scene.target is not None and judged is not None:
            features = network.embed(scene.target.image) if student else network.embed_seen(judged.seen)
            target = known["target"] = Labelled(features, self._labels("target", scene, judged, size))
            confidence = resized(judged.logits, size).softmax(1).amax(1)
        if rule.keys_from == "pseudo_target":
            features = network.embed(self._images(scene, "pseudo_target"))
            known["pseudo_target"] = Labelled(features, known["source"].labels)
        self.student.train()
        return Keys(known[rule.keys_from], known["source"], target, confidence)

    def _pull_loss(
        self, embeddings: Tensor, scene: Scene, judged: Judged | None, keys: Keys, weights: Tensor
    ) -> Tensor:
        labels = self._labels(self.config.pull.queries_from, scene, judged, embeddings.shape[-2:])
        draws = torch.Generator(self.device)
        draws.manual_seed(seed_of(self.config.training.seed, self._draw(), _DRAWS))
        value: Tensor = self.pull(Labelled(embeddings, labels), *keys, weights, draws)
        return value

    def _images(self, scene: Scene, place: str) -> Tensor:
        found = {
            "source": scene.source.image,
            "pseudo_target": scene.styled,
            "target": None if scene.target is None else scene.target.image,
        }[place]
        assert found is not None  # the configuration makes what it asks for
        return found

    def _labels(self, place: str, scene: Scene, judged: Judged | None, size: Sequence[int]) -> Tensor:
        """Labels (N, *size) of the images of a place: the source's, or the teacher's of the target."""
        if place == "target":
            assert judged is not None
            return resized(judged.logits, size).argmax(1)
        assert scene.source.label is not None
        return shrink(scene.source.label, size)

    def _distance(self, coarsest: Tensor, shown: Images) -> Tensor:
        """DAFormer's feature distance of the labelled images."""
        assert self.first is not None
        assert shown.label is not None
        with torch.no_grad():
            first = self.first(self.student.context(shown.image))[-1]
        share, classes = self.config.feature_distance.share, len(self.classes)
        cells = thing_cells(shown.label, self.things, classes, coarsest.shape[-2:], share)
        return feature_distance(coarsest, first, cells)

    def _draw(self) -> int:
        """A number for this step and rank."""
        return self.step * world_size() + rank()

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
        return _teacher(self) if self.config.training.evaluate == "teacher" else self.student

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds. The first encoder is drawn, or read, again."""
        return {
            "student": self.student,
            "teacher": self.teacher,
            "weights": self.weights,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
        }


def _teacher(engine: Engine) -> Segmenter:
    network: Segmenter = engine.teacher.module  # type: ignore[assignment]
    return network


def _probabilities(judged: Judged, images: Images) -> Tensor:
    """The teacher's p (N, C, H, W) at the images' size."""
    return resized(judged.logits, images.image.shape[-2:]).softmax(1)


def _supervised(loss: nn.Module, images: Images, logits: Tensor, place: Any) -> Tensor:
    """The cross-entropy at a place of labelled images."""
    assert images.label is not None
    value: Tensor = loss(logits, images.label[place].contiguous())
    return value


def _studied_loss(images: Mixed, class_weight: Tensor | None, logits: Tensor, place: Any) -> Tensor:
    """The weighed cross-entropy at a place of images with pseudo-labels."""
    return mixed_loss(logits, images.label[place], images.weight[place], class_weight)


def _optimizer(student: Segmenter, recipe: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW, the encoder with a rate of its own."""
    encoder, head = apart(student.vision, student)
    groups = [{"params": encoder, "lr": recipe.lr}, {"params": head, "lr": recipe.head_lr}]
    return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)


def _scheduler(
    optimizer: torch.optim.Optimizer, recipe: TrainingConfig
) -> torch.optim.lr_scheduler.LRScheduler:
    """The rates rise linearly for `warmup` steps; then they stay, or lie under a polynomial that falls to 0."""
    power = 0.0 if recipe.decay == "constant" else recipe.power
    return polynomial(optimizer, recipe.iterations, power, recipe.warmup)
