"""One step of training, written out; and all that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from classbalance_losses.functional import (
    anchor_loss,
    masked_consistency_loss,
    query_diversity_loss,
    text_alignment_loss,
    topology_loss,
)
from examples.common.distributed import average_gradients, join_batch_norm
from examples.common.recipe import apart, polynomial
from examples.common.resumable import Resumable
from examples.common.sampling import generator, seed_of
from examples.common.scenes.batches import Images
from examples.common.scenes.labels import IGNORE_INDEX
from examples.common.scenes.strong import StrongView
from examples.hvl.config import Config
from examples.hvl.data.task import Task
from examples.hvl.data.views import boxes, hide, pasted
from examples.hvl.losses import consistency_loss, dense_cross_entropy, entropy_share, set_loss
from examples.hvl.model.network import build_network
from examples.hvl.model.prediction import Prediction
from examples.hvl.model.presence import Probe, from_labels
from examples.hvl.occlusion import occluded

# Streams of random numbers beside those of the batches: strong views, boxes, hidden classes, points.
_STRONG, _BOXES, _HIDDEN, _POINTS = 12, 13, 14, 15
# Losses that are added to L_seg, each with a weight of its name.
_WEIGHTED = ("encoder", "consistency", "entropy", "diversity", "topology", "anchor", "align", "mask")


class Engine(Resumable):
    """Network, losses and optimiser, and the step that changes them.

    **Ranks.** Each has its share of a step's images. Gradients, losses and BatchNorm's statistics are those of the
    joined batch, so that a step is that of one process; a box of CutMix comes from the next image of the rank's share.
    """

    def __init__(self, config: Config, task: Task, device: torch.device) -> None:
        self.config, self.device, self.step = config, device, 0
        network, frozen = build_network(config, task.classes)
        self.network, self.frozen = network.to(device), frozen.to(device)
        if isinstance(network.presence, Probe):
            network.presence.fit(self.frozen.vision, task.labelled, IGNORE_INDEX)
        join_batch_norm(network.vision, device)
        self.strong = StrongView(config.consistency.strength)
        recipe = config.training
        encoder, others = apart(network.vision, network)
        groups = [{"params": others}, {"params": encoder, "lr": recipe.lr * recipe.vision_lr}]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=recipe.lr, weight_decay=recipe.weight_decay
        )
        self.scheduler = _scheduler(self.optimizer, config)

    def advance(self, batch: Mapping[str, Images]) -> dict[str, Tensor]:
        """One step on a labelled and an unlabelled stream, this rank's share; what to log, of all ranks."""
        labelled, unlabelled = (batch[name].to(self.device) for name in ("labelled", "unlabelled"))
        if labelled.label is None:
            raise ValueError("the labelled stream has no labels")
        self.network.train()
        self.optimizer.zero_grad()
        text = self.network.text(self.frozen.text)
        known, presence = len(labelled.image), self._presence(labelled.label, unlabelled.image)
        prediction = self.network(torch.cat([labelled.image, unlabelled.image]), text, presence)
        values = self._on_labels(prediction[:known], labelled)
        guess, sure = self._pseudo_labels(prediction[known:], unlabelled)
        values |= self._on_unlabelled(prediction[known:], unlabelled, text, guess, sure)
        values |= self._on_text(text)
        labels = torch.cat([labelled.label, torch.where(sure, guess, IGNORE_INDEX)])
        values |= self._on_hidden(labelled, unlabelled, labels, text)
        weights = self.config.weights
        loss = values["segmentation"]
        for name in _WEIGHTED:
            if name in values:
                loss = loss + getattr(weights, name) * values[name]
        loss.backward()
        average_gradients(self.network.parameters())
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.training.clip)
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1
        return {"loss": loss.detach(), **{name: value.detach() for name, value in values.items()}}

    def predict(self, images: Tensor, text: Tensor) -> Prediction:
        """Of images without labels, (N, 3, H, W)."""
        prediction: Prediction = self.network(images, text, self._seen(images))
        return prediction

    def text(self) -> Tensor:
        """The class embeddings as they are now, (K, D), for many calls of `predict`."""
        with torch.no_grad():
            embedded: Tensor = self.network.text(self.frozen.text)
        return embedded

    def _seen(self, images: Tensor) -> Tensor:
        """How likely each class is to be in images without labels, (N, K)."""
        score: Tensor = self.network.presence(self.frozen.vision, images)
        return score

    def _presence(self, labels: Tensor, unlabelled: Tensor) -> Tensor:
        """Of a batch: the labels' classes, then what the frozen encoders see."""
        classes = len(self.network.text.names)
        return torch.cat([from_labels(labels, classes, IGNORE_INDEX), self._seen(unlabelled)])

    def _on_labels(self, prediction: Prediction, labelled: Images) -> dict[str, Tensor]:
        """L_seg, and the cross-entropy of the encoder's own prediction."""
        config, labels = self.config, labelled.label
        assert labels is not None
        seed = config.training.seed
        drawn = [
            torch.rand(config.loss.points, 2, generator=generator(seed, position, _POINTS))
            for position in labelled.positions
        ]
        points = torch.stack(drawn).to(self.device)
        values = {
            "segmentation": set_loss(prediction, labels, points, config.weights, config.loss, IGNORE_INDEX)
        }
        if config.weights.encoder:
            own = _resized(prediction.own, labels.shape[-2:])
            values["encoder"] = dense_cross_entropy(own, labels, IGNORE_INDEX)
        return values

    def _pseudo_labels(self, prediction: Prediction, unlabelled: Images) -> tuple[Tensor, Tensor]:
        """The class of each unlabelled pixel, and where it is sure, by the prediction that has to be consistent."""
        logits = self._dense(prediction, unlabelled.image).detach()
        confidence, label = logits.softmax(1).max(1)
        sure = confidence >= self.config.consistency.threshold
        return label, sure if unlabelled.padding is None else sure & ~unlabelled.padding

    def _dense(self, prediction: Prediction, images: Tensor) -> Tensor:
        size = (images.shape[-2], images.shape[-1])
        final = self.config.consistency.prediction == "final"
        return prediction.logits(size) if final else _resized(prediction.own, size)

    def _on_unlabelled(
        self, prediction: Prediction, unlabelled: Images, text: Tensor, label: Tensor, sure: Tensor
    ) -> dict[str, Tensor]:
        """Entropy of the final prediction; and weak to strong, of the encoder's own one or of the final one."""
        config, images = self.config, unlabelled.image
        size = (images.shape[-2], images.shape[-1])
        values: dict[str, Tensor] = {}
        if config.weights.entropy:
            values["entropy"] = entropy_share(prediction.logits(size), unlabelled.padding)
        if config.weights.consistency:
            views, labels, trusted = [], [], []
            for view in range(config.consistency.views):
                strong, wanted, where = (
                    self.strong(images, self._seeds(unlabelled, _STRONG, view)),
                    label,
                    sure,
                )
                if config.consistency.cutmix:
                    inside = boxes(size, self._seeds(unlabelled, _BOXES, view)).to(self.device)
                    strong, wanted, where = (pasted(x, inside) for x in (strong, label, sure))
                views.append(strong)
                labels.append(wanted)
                trusted.append(where)
            student = self._student(torch.cat(views), text)
            agreement, share = consistency_loss(student, torch.cat(labels), torch.cat(trusted))
            values |= {"consistency": agreement, "confident": share}
        return values

    def _student(self, images: Tensor, text: Tensor) -> Tensor:
        """Logits of strong views, at their size."""
        if self.config.consistency.prediction == "final":
            return self._dense(self.predict(images, text), images)
        return _resized(self.network.own_logits(images), images.shape[-2:])

    def _on_text(self, text: Tensor) -> dict[str, Tensor]:
        """L_div, L_topo and L_anchor, those that have a weight and something to look at."""
        weights, options = self.config.weights, self.config.loss
        queries, prototypes = self.network.queries(text), self.network.text.prototypes
        values: dict[str, Tensor] = {}
        if queries is None:
            return values
        if weights.diversity and self.network.filters:
            values["diversity"] = query_diversity_loss(
                queries, pairs=options.pairs, reduction=options.reduction
            )
        if weights.topology:
            values["topology"] = topology_loss(text, prototypes, reduction=options.reduction)
        if weights.anchor:
            values["anchor"] = anchor_loss(
                self.network.text.phi(text),
                prototypes,
                normalize=options.normalize,
                reduction=options.reduction,
            )
        return values

    def _on_hidden(
        self, labelled: Images, unlabelled: Images, labels: Tensor, text: Tensor
    ) -> dict[str, Tensor]:
        """L_align and L_mask where one class of each image of both streams is hidden, those that have a weight."""
        weights, options = self.config.weights, self.config.loss
        if not (weights.align or weights.mask):
            return {}
        images = torch.cat([labelled.image, unlabelled.image])
        with torch.no_grad():
            whole = self.frozen.vision(images)[-1]
        seeds = self._seeds(labelled, _HIDDEN, 0) + self._seeds(unlabelled, _HIDDEN, 1)
        hidden, cells = occluded(labels, whole.shape[-2:], seeds, IGNORE_INDEX)
        features, region = self.network.vision(hide(images, hidden))[-1], cells != IGNORE_INDEX
        values: dict[str, Tensor] = {}
        if weights.mask:
            values["mask"] = masked_consistency_loss(features, whole, region, process_group="world")
        if weights.align:
            values["align"] = text_alignment_loss(
                self.network.to_text(features),
                text if options.align_text == "prompted" else self.network.text.prototypes,
                cells,
                mask=region,
                temperature=options.temperature,
                ignore_index=IGNORE_INDEX,
                process_group="world",
            )
        return values

    def _seeds(self, images: Images, stream: int, view: int) -> list[int]:
        """One for each image of the run and each of its views."""
        seed = self.config.training.seed
        return [seed_of(seed_of(seed, position, stream), view, stream) for position in images.positions]

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"network": self.network, "optimizer": self.optimizer, "scheduler": self.scheduler}


def _resized(logits: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def _scheduler(optimizer: torch.optim.Optimizer, config: Config) -> torch.optim.lr_scheduler.LRScheduler:
    recipe = config.training
    if recipe.schedule == "one_cycle":
        rates = [group["lr"] for group in optimizer.param_groups]
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=recipe.iterations + 1)
    return polynomial(optimizer, recipe.iterations, recipe.power, recipe.warmup)
