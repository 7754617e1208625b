"""One step of training, written out; and all that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from classbalance_losses.functional import (
    anchor_loss,
    masked_consistency_loss,
    query_diversity_loss,
    text_alignment_loss,
    topology_loss,
)
from examples.common.resumable import Resumable
from examples.common.sampling import seed_of
from examples.common.scenes.batches import Images
from examples.common.scenes.labels import IGNORE_INDEX
from examples.common.scenes.strong import StrongView
from examples.hvl.config import Config
from examples.hvl.data.views import at_size, boxes, hide, labels_at_size, masked_patches, pasted
from examples.hvl.losses import consistency_loss, set_loss
from examples.hvl.model.network import build_network
from examples.hvl.schedule import polynomial

# Streams of random numbers beside those of the batches: strong views, boxes, hidden patches, points.
_STRONG, _BOXES, _HIDDEN, _POINTS = 12, 13, 14, 15


class Engine(Resumable):
    """Network, losses and optimiser, and the step that changes them; one process."""

    def __init__(self, config: Config, classes: tuple[str, ...], device: torch.device) -> None:
        self.config, self.device, self.step = config, device, 0
        network, reference = build_network(config, classes)
        self.network, self.reference = network.to(device), reference.to(device)
        self.strong = StrongView(config.consistency.strength)
        recipe = config.training
        encoder = [p for p in network.vision.parameters() if p.requires_grad]
        known = {id(p) for p in encoder}
        others = [p for p in network.parameters() if p.requires_grad and id(p) not in known]
        groups = [{"params": others}, {"params": encoder, "lr": recipe.lr * recipe.vision_lr}]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=recipe.lr, weight_decay=recipe.weight_decay
        )
        self.scheduler = _scheduler(self.optimizer, config)

    def advance(self, batch: Mapping[str, Images]) -> dict[str, Tensor]:
        """One step on a labelled and an unlabelled stream; returns what to log, on the device."""
        labelled, unlabelled = (batch[name].to(self.device) for name in ("labelled", "unlabelled"))
        torch.manual_seed(seed_of(self.config.training.seed, self.step, _POINTS))
        self.network.train()
        self.optimizer.zero_grad()
        values = self._segmentation(labelled, unlabelled)
        values |= self._on_text()
        values |= self._on_features(labelled, unlabelled)
        weights = self.config.weights
        loss = values["segmentation"]
        for name in ("consistency", "diversity", "topology", "anchor", "align", "mask"):
            if name in values:
                loss = loss + getattr(weights, name) * values[name]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.training.clip)
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1
        return {"loss": loss.detach(), **{name: value.detach() for name, value in values.items()}}

    def _segmentation(self, labelled: Images, unlabelled: Images) -> dict[str, Tensor]:
        """L_seg of the labelled images; weak to strong on the others, where that is on."""
        config, known = self.config, len(labelled.image)
        if labelled.label is None:
            raise ValueError("the labelled stream has no labels")
        if not config.components.consistency or not config.weights.consistency:
            prediction = self.network(labelled.image)
            return {"segmentation": self._set_loss(prediction, labelled.label)}
        size = (unlabelled.image.shape[-2], unlabelled.image.shape[-1])
        with torch.no_grad(), _evaluating(self.network):
            wanted = self.network(unlabelled.image).logits(size)
            if unlabelled.padding is not None:  # equal logits are sure of nothing
                wanted = wanted.masked_fill(unlabelled.padding[:, None], 0)
        views, targets = [], []
        for view in range(config.consistency.views):
            strong = self.strong(unlabelled.image, self._seeds(unlabelled, _STRONG, view))
            if config.consistency.cutmix:
                inside = boxes(size, self._seeds(unlabelled, _BOXES, view)).to(self.device)
                strong, target = pasted(strong, inside), pasted(wanted, inside)
            views.append(strong)
            targets.append(target if config.consistency.cutmix else wanted)
        prediction = self.network(torch.cat([labelled.image, *views]))
        agreement, sure = consistency_loss(
            prediction[known:].logits(size), torch.cat(targets), config.consistency.threshold
        )
        segmentation = self._set_loss(prediction[:known], labelled.label)
        return {"segmentation": segmentation, "consistency": agreement, "confident": sure}

    def _set_loss(self, prediction: Any, labels: Tensor) -> Tensor:
        return set_loss(prediction, labels, self.config.weights, self.config.loss, IGNORE_INDEX)

    def _on_text(self) -> dict[str, Tensor]:
        """L_div, L_topo and L_anchor, those that have a weight."""
        weights, options, network = self.config.weights, self.config.loss, self.network
        text, projected = network.text()
        prototypes = network.text.prototypes
        values = {}
        if weights.diversity:
            values["diversity"] = query_diversity_loss(
                network.queries(), pairs=options.pairs, reduction=options.reduction
            )
        if weights.topology:
            values["topology"] = topology_loss(text, prototypes, reduction=options.reduction)
        if weights.anchor:
            values["anchor"] = anchor_loss(
                projected, prototypes, normalize=options.normalize, reduction=options.reduction
            )
        return values

    def _on_features(self, labelled: Images, unlabelled: Images) -> dict[str, Tensor]:
        """L_align and L_mask on masked images of both streams, those that have a weight.

        The unlabelled images have no label, and so no part in L_align.
        """
        weights, options = self.config.weights, self.config.loss
        if not (weights.align or weights.mask) or labelled.label is None:
            return {}
        images = torch.cat([labelled.image, unlabelled.image])
        labels = torch.cat(
            [labelled.label, torch.full_like(unlabelled.image[:, 0], IGNORE_INDEX, dtype=torch.long)]
        )
        seeds = self._seeds(labelled, _HIDDEN, 0) + self._seeds(unlabelled, _HIDDEN, 1)
        size = (images.shape[-2], images.shape[-1])
        hidden = masked_patches(size, options.mask_patch, options.mask_ratio, seeds).to(self.device)
        features = self.network.vision(hide(images, hidden))[-1]
        region = at_size(hidden, features.shape[-2:])
        values = {}
        if weights.mask:
            with torch.no_grad():
                whole = self.reference(images)[-1]
            values["mask"] = masked_consistency_loss(features, whole, region)
        if weights.align:
            _, text = self.network.text()
            values["align"] = text_alignment_loss(
                self.network.to_text(features),
                text,
                labels_at_size(labels, features.shape[-2:]),
                mask=region,
                temperature=options.temperature,
                ignore_index=IGNORE_INDEX,
            )
        return values

    def _seeds(self, images: Images, stream: int, view: int) -> list[int]:
        """One for each image of the run and each of its views."""
        seed = self.config.training.seed
        return [seed_of(seed_of(seed, position, stream), view, stream) for position in images.positions]

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"network": self.network, "optimizer": self.optimizer, "scheduler": self.scheduler}


@contextmanager
def _evaluating(network: torch.nn.Module) -> Any:
    """Evaluation mode for a while."""
    network.eval()
    try:
        yield
    finally:
        network.train()


def _scheduler(optimizer: torch.optim.Optimizer, config: Config) -> torch.optim.lr_scheduler.LRScheduler:
    recipe = config.training
    if recipe.schedule == "one_cycle":
        rates = [group["lr"] for group in optimizer.param_groups]
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=recipe.iterations + 1)
    return polynomial(optimizer, recipe.iterations, recipe.power, recipe.warmup)
